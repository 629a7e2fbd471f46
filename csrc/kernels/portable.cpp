#define ROOKERY_LANES portable

#include "lanes/portable.h"
#include "kernels/all.h"
