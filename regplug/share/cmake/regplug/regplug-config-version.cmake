# The version is only in version.h.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/../../../include/regplug/version.h" _regplug_line
     REGEX "^#define REGPLUG_VERSION ")
string(REGEX REPLACE "^#define REGPLUG_VERSION \"([^\"]+)\".*" "\\1" PACKAGE_VERSION "${_regplug_line}")
unset(_regplug_line)

if(PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()

# A range (find_package(regplug 0.1...<0.3)) has both ends; a single version is a minimum. Before 1.0 a new minor
# version may break users, from 1.0 on a new major version.
if(PACKAGE_FIND_VERSION_RANGE)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
  if(PACKAGE_VERSION VERSION_GREATER_EQUAL PACKAGE_FIND_VERSION_MIN
     AND (PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION_MAX
          OR (PACKAGE_FIND_VERSION_RANGE_MAX STREQUAL "INCLUDE"
              AND PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION_MAX)))
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
  endif()
else()
  string(REGEX MATCH "^(0\\.[0-9]+|[1-9][0-9]*)" _regplug_line "${PACKAGE_VERSION}")
  if(PACKAGE_VERSION VERSION_GREATER_EQUAL PACKAGE_FIND_VERSION
     AND (PACKAGE_FIND_VERSION MATCHES "^${_regplug_line}(\\.|$)" OR PACKAGE_FIND_VERSION STREQUAL "0"))
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
  else()
    set(PACKAGE_VERSION_COMPATIBLE FALSE)
  endif()
  unset(_regplug_line)
endif()
