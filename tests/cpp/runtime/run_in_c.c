/* run_in_c BUNDLE [DIGEST]: runs the bundle on ones, for two samples, and prints its description and its outputs. */
#include <regplug/regplug.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RANK 4

/* Reads the sizes of the first shape in a description: ["B",4,24]. The sizes "B" and "T" become 2 and 9. */
static uint32_t read_sizes(const char* text, int64_t* sizes) {
  uint32_t rank = 0;
  for (text = strstr(text, "\"shape\":[") + 9; rank < MAX_RANK; ++text) {
    sizes[rank++] = text[0] == '"' ? (text[1] == 'B' ? 2 : 9) : strtoll(text, NULL, 10);
    text = strpbrk(text, ",]");
    if (*text == ']') break;
  }
  return rank;
}

int main(int argc, char** argv) {
  if (regplug_abi() < REGPLUG_ABI) return 3;
  regplug_bundle* bundle = regplug_open(argc > 1 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL, 0);
  if (bundle == NULL) {
    printf("%s\n", regplug_last_error());
    return 1;
  }
  printf("%s\n", regplug_describe(bundle));

  int64_t sizes[MAX_RANK];
  const uint32_t rank = read_sizes(regplug_describe(bundle), sizes);
  size_t items = 1;
  for (uint32_t i = 0; i < rank; ++i) items *= (size_t)sizes[i];
  float* data = malloc(items * sizeof *data);
  for (size_t i = 0; i < items; ++i) data[i] = 1;
  regplug_tensor input = {NULL, REGPLUG_FLOAT32, rank, sizes, NULL, data};
  regplug_outputs* outputs = regplug_run(bundle, &input, 1);
  free(data);
  regplug_close(bundle); /* the outputs stay valid */
  if (outputs == NULL) {
    printf("%s\n", regplug_last_error());
    return 1;
  }
  for (size_t i = 0; i < regplug_num_outputs(outputs); ++i) {
    regplug_tensor output;
    if (regplug_output(outputs, i, &output) != 0) return 1;
    printf("%s", output.name);
    for (int64_t j = 0; j < output.sizes[0] * output.sizes[1]; ++j) printf(" %.9g", ((const float*)output.data)[j]);
    printf("\n");
  }
  regplug_free_outputs(outputs);
  return 0;
}
