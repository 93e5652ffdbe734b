/* run_in_c BUNDLE [DIGEST]: runs the bundle on ones, for two samples, and prints its description and its outputs. The
 * only input is given without its name, several in the opposite order. */
#include <regplug/regplug.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RANK 4
#define MAX_INPUTS 8

static char names[MAX_INPUTS][64];
static int64_t sizes[MAX_INPUTS][MAX_RANK];
static regplug_tensor inputs[MAX_INPUTS];

/* Reads the sizes of the next shape in a description: ["B",4,24]. The sizes "B" and "T" become 2 and 9. */
static uint32_t read_sizes(const char* text, int64_t* found) {
  uint32_t rank = 0;
  for (text = strstr(text, "\"shape\":[") + 9; rank < MAX_RANK; ++text) {
    found[rank++] = text[0] == '"' ? (text[1] == 'B' ? 2 : 9) : strtoll(text, NULL, 10);
    text = strpbrk(text, ",]");
    if (*text == ']') break;
  }
  return rank;
}

/* Makes a tensor of ones for each input of a description: {"dtype":"float32","name":"tokens","shape":["B",4,24]}. */
static size_t make_inputs(const char* text) {
  size_t count = 0;
  const char* const end = strstr(text, "\"isa\"");
  text = strstr(text, "\"inputs\"");
  for (; (text = strstr(text, "\"dtype\":\"")) != NULL && text < end; ++count) {
    const int is_mask = text[9] == 'b';
    text = strstr(text, "\"name\":\"") + 8;
    memcpy(names[count], text, strcspn(text, "\""));
    const uint32_t rank = read_sizes(text, sizes[count]);
    size_t items = 1;
    for (uint32_t i = 0; i < rank; ++i) items *= (size_t)sizes[count][i];
    float* data = malloc(items * sizeof *data);
    for (size_t i = 0; i < items; ++i) data[i] = 1;
    if (is_mask) memset(data, 1, items);
    const regplug_tensor made = {names[count], is_mask ? REGPLUG_BOOL : REGPLUG_FLOAT32, rank, sizes[count], NULL, data};
    inputs[count] = made;
  }
  if (count == 1) inputs[0].name = NULL;
  for (size_t i = 0; i < count / 2; ++i) {
    const regplug_tensor moved = inputs[i];
    inputs[i] = inputs[count - 1 - i];
    inputs[count - 1 - i] = moved;
  }
  return count;
}

int main(int argc, char** argv) {
  if (regplug_abi() < REGPLUG_ABI) return 3;
  regplug_bundle* bundle = regplug_open(argc > 1 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL, 0);
  if (bundle == NULL) {
    printf("%s\n", regplug_last_error());
    return 1;
  }
  printf("%s\n", regplug_describe(bundle));

  const size_t count = make_inputs(regplug_describe(bundle));
  regplug_outputs* outputs = regplug_run(bundle, inputs, count);
  for (size_t i = 0; i < count; ++i) free((void*)inputs[i].data);
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
