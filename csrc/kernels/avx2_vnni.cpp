#define ROOKERY_LANES avx2_vnni
#include "kernels/all.h"
#include "lanes/avx2.h"
