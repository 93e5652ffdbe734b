// The version of regplug, written here and nowhere else: the wheel and the CMake package read it from this file.
#pragma once

#define REGPLUG_VERSION "0.1.0"

// The newest bundle format that these headers read, and they read all before it; independent of the package version.
#define REGPLUG_BUNDLE_FORMAT 2
