# The target regplug::runtime, from the sources next to this file. regplug-config.cmake includes it.
add_library(regplug_runtime STATIC EXCLUDE_FROM_ALL)
add_library(regplug::runtime ALIAS regplug_runtime)
target_sources(regplug_runtime PRIVATE
               "${CMAKE_CURRENT_LIST_DIR}/convolution.cpp" "${CMAKE_CURRENT_LIST_DIR}/functions.cpp"
               "${CMAKE_CURRENT_LIST_DIR}/kernels.cpp" "${CMAKE_CURRENT_LIST_DIR}/kernels_baseline.cpp"
               "${CMAKE_CURRENT_LIST_DIR}/operations.cpp" "${CMAKE_CURRENT_LIST_DIR}/tensor.cpp"
               "${CMAKE_CURRENT_LIST_DIR}/vector_math.cpp")
# the mathematics once more for newer CPUs; the best is chosen when a program runs
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(_regplug_flags_v3 -mavx2 -mfma -mf16c)
  set(_regplug_flags_v4 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 ${_regplug_flags_v3})
  foreach(_regplug_isa IN ITEMS v3 v4)
    target_sources(regplug_runtime PRIVATE "${CMAKE_CURRENT_LIST_DIR}/kernels_${_regplug_isa}.cpp")
    set_property(SOURCE "${CMAKE_CURRENT_LIST_DIR}/kernels_${_regplug_isa}.cpp" TARGET_DIRECTORY regplug_runtime
                 APPEND PROPERTY COMPILE_OPTIONS ${_regplug_flags_${_regplug_isa}})
    unset(_regplug_flags_${_regplug_isa})
  endforeach()
  unset(_regplug_isa)
endif()
option(REGPLUG_RUNTIME_CBLAS "matrix products by a CBLAS library in place of Eigen; BLA_VENDOR chooses it" OFF)
if(REGPLUG_RUNTIME_CBLAS)
  find_package(BLAS REQUIRED)
  find_path(CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas blis REQUIRED)
  target_sources(regplug_runtime PRIVATE "${CMAKE_CURRENT_LIST_DIR}/cblas.cpp")
  target_compile_definitions(regplug_runtime PRIVATE REGPLUG_CBLAS)
  target_include_directories(regplug_runtime PRIVATE "${CBLAS_INCLUDE_DIR}")
  target_link_libraries(regplug_runtime PUBLIC BLAS::BLAS)
endif()
# optimized in every build type: without, a product is a hundred times slower
target_compile_options(regplug_runtime PRIVATE -O2)
target_compile_definitions(regplug_runtime PUBLIC REGPLUG_RUNTIME)
target_include_directories(regplug_runtime SYSTEM PRIVATE "${Eigen3_INCLUDE_DIR}")
set_target_properties(regplug_runtime PROPERTIES
                      POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
                      INTERFACE_regplug_SHIM runtime COMPATIBLE_INTERFACE_STRING regplug_SHIM)
find_package(Threads REQUIRED)
target_link_libraries(regplug_runtime PUBLIC regplug::regplug Threads::Threads ${CMAKE_DL_LIBS})
