// torch's device "cuda", where there is none: in the memory of the CPU, and computed by it.
//
// Tensors, autograd, autocast, custom operators and their dispatch are torch's own, as on a GPU. What torch has a
// kernel for on the CPU is done by that kernel, over the same memory; what others add needs a kernel for "cuda".
// Refused is what a GPU refuses: one operator with tensors of two devices. Memory that was not written is NaN.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/List.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/copy_ops.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);
const c10::Stream kStream(c10::Stream::DEFAULT, kDevice);

// Memory ------------------------------------------------------------------------------------------------------

// What nobody wrote is NaN in every floating-point type, and -1 in integers.
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes) {
      TORCH_CHECK(!posix_memalign(&data, 64, bytes), "out of memory: ", bytes, " bytes");
      std::memset(data, 0xff, bytes);
    }
    return {data, data, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};

Memory memory;

// The same memory on the other device; it lives as long as the result does.
c10::Storage same_memory(const c10::Storage& storage, c10::Device device, c10::Allocator* allocator) {
  auto* owner = new c10::Storage(storage);
  auto release = [](void* owner) { delete static_cast<c10::Storage*>(owner); };
  c10::DataPtr data(storage.mutable_data(), owner, release, device);
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, /*resizable=*/true};
}

at::Tensor over(const c10::Storage& storage, c10::DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

// What is a view of a tensor that autograd may follow is one too, also where new tensors would not be.
at::Tensor view_of(const at::Tensor& base, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                                         base.key_set(), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

// Random numbers ----------------------------------------------------------------------------------------------

struct Random final : c10::GeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator();

  Random() : GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  Random* clone_impl() const override {
    auto* copy = new Random();
    copy->inner = inner.clone();
    return copy;
  }
  static c10::DeviceType device_type() { return c10::DeviceType::CUDA; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator random = at::make_generator<Random>();
    return random;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Random>(); }
};

// There is one device and one stream, and all work is done when it is asked for.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return kStream; }
  c10::Stream getDefaultStream(c10::Device) const override { return kStream; }
  c10::Stream getNewStream(c10::Device, int) const override { return kStream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return kStream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

// Operators ---------------------------------------------------------------------------------------------------

// One call: its tensors as those of a CPU, and back.
class Call {
 public:
  explicit Call(const c10::OperatorName& name) : name_(name) {}

  c10::IValue to_cpu(const c10::IValue& value) {
    if (value.isTensor()) return to_cpu(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> all;
      for (const at::Tensor& each : value.toTensorVector()) all.push_back(to_cpu(each));
      return all;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> all;
      for (const auto& each : value.toOptionalTensorVector())
        all.push_back(each ? std::optional(to_cpu(*each)) : std::nullopt);
      return all;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(c10::DeviceType::CPU);
    if (value.isGenerator() && value.toGenerator().device().is_cuda()) return value.toGenerator().get<Random>()->inner;
    return value;
  }

  c10::IValue to_device(const c10::IValue& value) {
    if (value.isTensor()) return to_device(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> all;
      for (const at::Tensor& each : value.toTensorVector()) all.push_back(to_device(each));
      return all;
    }
    return value;
  }

  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().is_cpu()) {
      // Numbers may come from the CPU, and places where to read.
      bool free = tensor.dim() == 0 || name_.name == "aten::index" || name_.name == "aten::index_put_" ||
                  name_.name == "aten::_index_put_impl_" || name_.name == "aten::copy_";
      TORCH_CHECK(free,
                  "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
                  name_, ")");
      pairs_.emplace_back(tensor, tensor);
      return tensor;
    }
    TORCH_CHECK(tensor.device().is_cuda(), name_, " got a tensor on ", tensor.device());
    auto* of = tensor.storage().unsafeGetStorageImpl();
    auto found = storages_.find(of);
    if (found == storages_.end())
      found = storages_.emplace(of, same_memory(tensor.storage(), c10::DeviceType::CPU, c10::GetCPUAllocator())).first;
    at::Tensor made = over(found->second, c10::DispatchKey::CPU, tensor);
    pairs_.emplace_back(made, tensor);
    return made;
  }

  at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.has_storage()) return tensor;
    for (const auto& [made, original] : pairs_)
      if (made.is_same(tensor)) return original;
    for (const auto& [made, original] : pairs_)
      if (made.storage().unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl())
        return view_of(original, tensor);
    return over(same_memory(tensor.storage(), kDevice, &memory), c10::DispatchKey::CUDA, tensor);
  }

  // Results that were given and have been made larger.
  void take_resized() {
    for (const auto& [made, original] : pairs_) {
      if (made.storage().data() != original.storage().data()) {
        auto* impl = original.storage().unsafeGetStorageImpl();
        c10::Storage grown = same_memory(made.storage(), kDevice, &memory);
        impl->set_nbytes(grown.nbytes());
        impl->set_data_ptr_noswap(std::move(grown.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
      }
      if (made.sizes() != original.sizes() || made.strides() != original.strides())
        original.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides(), made.storage_offset());
    }
  }

 private:
  c10::OperatorName name_;
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages_;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
};

void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.operator_name();
  TORCH_CHECK_NOT_IMPLEMENTED(name.name.rfind("aten::", 0) == 0 || name.name.rfind("prims::", 0) == 0, name,
                              " has no kernel for cuda");
  TORCH_CHECK_NOT_IMPLEMENTED(op.hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
                                  op.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd),
                              name, " has no kernel for the CPU, which this device needs");
  Call call(name);
  const size_t arguments = op.schema().arguments().size();
  for (size_t i = stack->size() - arguments; i < stack->size(); i++) (*stack)[i] = call.to_cpu((*stack)[i]);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.take_resized();
  const size_t results = op.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); i++) (*stack)[i] = call.to_device((*stack)[i]);
}

void check_device(std::optional<c10::Device> device) {
  TORCH_CHECK(!device || device->index() < 1, "CUDA error: invalid device ordinal");
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  check_device(device);
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  check_device(device);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

at::Tensor& set_strided(at::Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  TORCH_CHECK(source.device().is_cuda(), "the storage of a tensor on cuda:0 cannot be one on ", source.device());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor& set_whole(at::Tensor& self, c10::Storage source) {
  const int64_t size = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_strided(self, std::move(source), 0, size, 1);
}

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}
namespace c10 {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
REGISTER_ALLOCATOR(DeviceType::CUDA, &memory)
}  // namespace c10

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_strided);
  // One for all devices, which finds its kernel by the device of a tensor.
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&by_cpu>());
}
