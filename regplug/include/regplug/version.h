// The version of regplug, written here and nowhere else: the wheel and the CMake package read it from this file.
#pragma once

#define REGPLUG_VERSION "0.1.0"

// The bundle format these headers read; independent of the package version.
#define REGPLUG_BUNDLE_FORMAT 1
