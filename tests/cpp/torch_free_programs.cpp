// The programs that include no header of torch.
#include "aoti_golden.cpp"
#include "aoti_life.cpp"
#include "aoti_reload.cpp"
#include "by_name.h"
#include "open_bundles.cpp"
#include "units.cpp"

int main(int argc, char** argv) {
  return run_by_name(argc, argv,
                     {{"regplug_aoti_golden", aoti_golden::main_of},
                      {"regplug_aoti_life", aoti_life::main_of},
                      {"regplug_aoti_open", open_bundles::main_of},
                      {"regplug_aoti_reload", aoti_reload::main_of},
                      {"regplug_units", units::main_of}});
}
