#define ROOKERY_LANES avx512

#include "lanes/avx512.h"
#include "kernels/all.h"
