# find_package(regplug [COMPONENTS aotinductor torchscript runtime])
#
#   regplug::regplug      headers and nlohmann/json; needs no torch
#   regplug::aotinductor  the same and libtorch to link, for <regplug/aotinductor.h>: no header of torch, so programs
#                         run with other versions of torch too
#   regplug::torchscript  the same and libtorch with its headers, for <regplug/torchscript.h>
#   regplug::runtime      in place of regplug::aotinductor: the same <regplug/aotinductor.h> without libtorch. Built as
#                         part of your project; needs Eigen
# aotinductor and torchscript exist when torch is found, runtime exists when Eigen is found.
#
# torch, nlohmann/json and Eigen are searched along CMAKE_PREFIX_PATH; each of these entries works:
#   .../site-packages          where pip put torch, nlohmann-json and cmeel-eigen
#   .../site-packages/torch    or an unpacked libtorch
#   .../torch/share/cmake      what python -c "import torch; print(torch.utils.cmake_prefix_path)" prints
# Or set them directly: -DTORCH_DIR=.../site-packages/torch, -Dnlohmann_json_INCLUDE_DIR=..., -DEigen3_INCLUDE_DIR=...

get_filename_component(_regplug_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
get_filename_component(_regplug_site "${_regplug_root}" DIRECTORY)  # site-packages, or where the wheel was unpacked
set(_regplug_missing "")

# ---- libtorch: its own CMake package needs the CUDA toolkit when torch was built for CUDA; so its libraries are here

set(_regplug_hints "")
foreach(_regplug_hint IN ITEMS "${TORCH_DIR}" "$ENV{TORCH_DIR}" "${TORCH_INSTALL_PREFIX}" ${CMAKE_PREFIX_PATH}
                               "${_regplug_site}")
  if(_regplug_hint)
    list(APPEND _regplug_hints "${_regplug_hint}" "${_regplug_hint}/torch" "${_regplug_hint}/../..")
  endif()
endforeach()
find_path(regplug_TORCH_ROOT include/torch/csrc/jit/api/module.h HINTS ${_regplug_hints} NO_DEFAULT_PATH)
find_library(regplug_TORCH_CPU torch_cpu HINTS "${regplug_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
find_library(regplug_C10 c10 HINTS "${regplug_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
mark_as_advanced(regplug_TORCH_ROOT regplug_TORCH_CPU regplug_C10)

# ---- nlohmann/json: a CMake package if the system has one, otherwise the headers that pip installs

find_package(nlohmann_json QUIET)
if(NOT TARGET nlohmann_json::nlohmann_json)
  find_path(nlohmann_json_INCLUDE_DIR nlohmann/json.hpp
            HINTS ${CMAKE_PREFIX_PATH} "${_regplug_site}" "${regplug_TORCH_ROOT}/.."
            PATH_SUFFIXES nlohmann_json/include ../nlohmann_json/include include)
  mark_as_advanced(nlohmann_json_INCLUDE_DIR)
  if(nlohmann_json_INCLUDE_DIR)
    add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
    target_include_directories(nlohmann_json::nlohmann_json INTERFACE "${nlohmann_json_INCLUDE_DIR}")
  else()
    string(APPEND _regplug_missing
           "nlohmann/json.hpp not found: pip install nlohmann-json and add its site-packages to CMAKE_PREFIX_PATH, "
           "or pass -Dnlohmann_json_INCLUDE_DIR=DIR. ")
  endif()
endif()

# ---- targets

if(NOT TARGET regplug::regplug AND TARGET nlohmann_json::nlohmann_json)
  add_library(regplug::regplug INTERFACE IMPORTED)
  target_include_directories(regplug::regplug INTERFACE "${_regplug_root}/include")
  target_compile_features(regplug::regplug INTERFACE cxx_std_17)
  target_link_libraries(regplug::regplug INTERFACE nlohmann_json::nlohmann_json)
endif()

if(NOT TARGET regplug::torch_cpu AND TARGET regplug::regplug
   AND regplug_TORCH_ROOT AND regplug_TORCH_CPU AND regplug_C10)
  add_library(regplug::torch_cpu SHARED IMPORTED)
  set_target_properties(regplug::torch_cpu PROPERTIES IMPORTED_LOCATION "${regplug_TORCH_CPU}")
  add_library(regplug::c10 SHARED IMPORTED)
  set_target_properties(regplug::c10 PROPERTIES IMPORTED_LOCATION "${regplug_C10}")

  find_package(Threads REQUIRED)
  add_library(regplug::aotinductor INTERFACE IMPORTED)
  target_link_libraries(regplug::aotinductor INTERFACE regplug::regplug regplug::torch_cpu regplug::c10
                                                       Threads::Threads ${CMAKE_DL_LIBS})
  # a target with both shims would hold two different classes AOTInductorBundle
  set_target_properties(regplug::aotinductor PROPERTIES INTERFACE_regplug_SHIM libtorch
                                                        COMPATIBLE_INTERFACE_STRING regplug_SHIM)

  add_library(regplug::torchscript INTERFACE IMPORTED)
  target_include_directories(regplug::torchscript INTERFACE "${regplug_TORCH_ROOT}/include")
  # this package needs torch >= 2.10, and those wheels are built with the new std::string
  target_compile_definitions(regplug::torchscript INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
  target_link_libraries(regplug::torchscript INTERFACE regplug::regplug regplug::torch_cpu regplug::c10)
endif()

# ---- the runtime: its sources are here, and are compiled by the project that uses them

if(NOT TARGET regplug::runtime AND TARGET regplug::regplug)
  find_path(Eigen3_INCLUDE_DIR Eigen/Core
            HINTS ${CMAKE_PREFIX_PATH} "${_regplug_site}" ENV CMAKE_PREFIX_PATH
            PATH_SUFFIXES eigen3 include/eigen3 include cmeel.prefix/include/eigen3)
  mark_as_advanced(Eigen3_INCLUDE_DIR)
  if(Eigen3_INCLUDE_DIR)
    include("${_regplug_root}/share/regplug-runtime/runtime.cmake")
  elseif(regplug_FIND_REQUIRED_runtime)
    string(APPEND _regplug_missing
           "runtime: Eigen not found: install libeigen3-dev, or pip install cmeel-eigen and add its site-packages to "
           "CMAKE_PREFIX_PATH, or pass -DEigen3_INCLUDE_DIR=DIR. ")
  endif()
endif()
set(regplug_runtime_FOUND FALSE)
if(TARGET regplug::runtime)
  set(regplug_runtime_FOUND TRUE)
endif()

foreach(_regplug_component IN ITEMS aotinductor torchscript)
  set(regplug_${_regplug_component}_FOUND FALSE)
  if(TARGET regplug::${_regplug_component})
    set(regplug_${_regplug_component}_FOUND TRUE)
  elseif(regplug_FIND_REQUIRED_${_regplug_component}
         AND NOT (regplug_TORCH_ROOT AND regplug_TORCH_CPU AND regplug_C10))
    string(APPEND _regplug_missing
           "${_regplug_component}: libtorch not found: add the site-packages that holds torch to CMAKE_PREFIX_PATH, or "
           "pass -DTORCH_DIR=.../site-packages/torch. ")
  endif()
endforeach()
foreach(_regplug_component IN LISTS regplug_FIND_COMPONENTS)
  if(NOT DEFINED regplug_${_regplug_component}_FOUND AND regplug_FIND_REQUIRED_${_regplug_component})
    string(APPEND _regplug_missing "${_regplug_component}: no such component; known: aotinductor, torchscript, runtime. ")
  endif()
endforeach()

if(_regplug_missing)
  set(regplug_FOUND FALSE)
  set(regplug_NOT_FOUND_MESSAGE "${_regplug_missing}")
endif()

foreach(_regplug_name IN ITEMS root site hint hints component missing)
  unset(_regplug_${_regplug_name})
endforeach()
unset(_regplug_name)
