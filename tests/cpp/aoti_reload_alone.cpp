// regplug_aoti_reload alone, for ThreadSanitizer.
#include "aoti_reload.cpp"

int main(int argc, char** argv) { return aoti_reload::main_of(argc, argv); }
