// A driver of CUDA that is asked everything and runs nothing: it counts launches, and refuses those
// that a GPU would refuse. The number of a device is its compute capability.
#include <cuda.h>

#define ASKED __attribute__((visibility("default")))

ASKED long stub_launches;
ASKED int stub_block_bytes;      // of shared memory that a block may take
ASKED int stub_multiprocessors;

static CUresult give(int *into, int value) {
  *into = value;
  return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return give(version, CUDA_VERSION); }
CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "the stub of the driver refuses it";
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int number) { return give(device, number); }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute asked, CUdevice device) {
  switch (asked) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return give(value, device / 10);
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return give(value, device % 10);
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return give(value, stub_multiprocessors);
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    return give(value, stub_block_bytes);
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return give(value, 32);
  default: return give(value, 65536);
  }
}
CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *bytes, CUlimit limit) {
  *bytes = 1 << 20;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetLimit(CUlimit limit, size_t bytes) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  return cuCtxGetCurrent(context);
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)2;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)3;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute asked, CUfunction function) {
  return give(value, asked == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0);
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute asked, int value) {
  return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache preferred) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute asked, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(
    CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
    const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
    const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if ((size_t)address % 16)
    return CUDA_ERROR_INVALID_VALUE;
  for (cuuint32_t dimension = 0; dimension + 1 < rank; dimension++)
    if (strides[dimension] % 16)
      return CUDA_ERROR_INVALID_VALUE;
  for (cuuint32_t dimension = 0; dimension < rank; dimension++)
    if (box[dimension] > 256)
      return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra) {
  if (config->gridDimX == 0 || config->gridDimX > 0x7fffffff || config->gridDimY > 65535 ||
      config->gridDimZ > 65535 || config->blockDimX > 1024 ||
      config->sharedMemBytes > (unsigned)stub_block_bytes)
    return CUDA_ERROR_INVALID_VALUE;
  stub_launches++;
  return CUDA_SUCCESS;
}
