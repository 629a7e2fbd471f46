#define ROOKERY_LANES avx2

#include "lanes/avx2.h"
#include "kernels/all.h"
