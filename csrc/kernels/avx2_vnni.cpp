#define ROOKERY_LANES avx2_vnni

#include "lanes/avx2.h"
#include "kernels/all.h"
