// Stands in for a new cowfs that says it can be the keeper and then cannot: it becomes the one
// before again. See fs/keeper_reexec.cc.

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[2], "--probe") == 0) {
    std::ifstream memory(std::string("/proc/self/fd/") + argv[3]);
    std::string name;
    std::getline(memory, name);
    std::puts(name.c_str());
    return 0;
  }
  std::ifstream memory(std::string("/proc/self/fd/") + argv[argc - 1]);
  std::string word;
  int back = -1;
  std::getline(memory, word);
  memory >> word >> back;
  const char* const arguments[] = {"cowfs",        "keep",         "--back",
                                   "it is a test", argv[argc - 1], nullptr};
  execveat(back, "", const_cast<char**>(arguments), environ, AT_EMPTY_PATH);
  return 1;
}
