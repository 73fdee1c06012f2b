// A device without hardware, for tests of the path that weights take to one.
//
// Its memory is a memfd that is mapped twice. The address that a tensor carries belongs to a mapping without any access,
// so a host that touches device memory dies; copies go through the second mapping and are counted. Copies that may be
// asynchronous really are late: they wait in a queue until somebody synchronizes. Operators run on the host's kernels,
// which read device memory through the second mapping, so answers are the host's.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace {

constexpr size_t page = 4096;
constexpr auto device_type = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet dispatch_keys(c10::DispatchKey::PrivateUse1);

struct Counters {
  long to_device;          // copies from the host
  long to_device_bytes;
  long to_device_largest;
  long to_host;            // copies from the device
  long to_host_bytes;
  long to_host_largest;
  long live;               // bytes of device memory now
};

struct Block {
  char* usable;
  size_t size;
  int descriptor;
};

struct Late {
  char* target;
  const char* source;
  size_t size;
};

std::mutex guard;  // over everything below
std::map<char*, Block> blocks;  // by the address that tensors carry
std::vector<Late> late;
Counters counters;

char* usable(const void* address) {
  auto place = static_cast<char*>(const_cast<void*>(address));
  auto after = blocks.upper_bound(place);
  TORCH_CHECK(after != blocks.begin(), "not device memory");
  auto& [start, block] = *std::prev(after);
  TORCH_CHECK(place < start + block.size, "not device memory");
  return block.usable + (place - start);
}

void finish_late_copies() {
  for (const auto& copy : late) std::memcpy(copy.target, copy.source, copy.size);
  late.clear();
}

void release(void* address) {
  std::lock_guard<std::mutex> hold(guard);
  auto found = blocks.find(static_cast<char*>(address));
  if (found == blocks.end()) return;
  finish_late_copies();
  Block block = found->second;
  munmap(address, block.size);
  munmap(block.usable, block.size);
  close(block.descriptor);
  counters.live -= static_cast<long>(block.size);
  blocks.erase(found);
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t wanted) override {
    c10::Device device(device_type, 0);
    if (wanted == 0) return {nullptr, nullptr, &release, device};
    std::lock_guard<std::mutex> hold(guard);
    size_t size = (wanted + page - 1) / page * page;
    int descriptor = memfd_create("fake_device", 0);
    TORCH_CHECK(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(size)) == 0, "out of device memory");
    void* carried = mmap(nullptr, size, PROT_NONE, MAP_SHARED, descriptor, 0);
    void* backing = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    TORCH_CHECK(carried != MAP_FAILED && backing != MAP_FAILED, "out of device memory");
    blocks[static_cast<char*>(carried)] = {static_cast<char*>(backing), size, descriptor};
    counters.live += static_cast<long>(size);
    return {carried, carried, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, size_t size) const override {
    std::memcpy(usable(target), usable(source), size);
  }
} allocator;

REGISTER_ALLOCATOR(device_type, &allocator)
C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::NoOpDeviceGuardImpl<device_type>)

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, dispatch_keys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, dispatch_keys, c10::dtype_or_default(dtype));
}

void count(long& copies, long& bytes, long& largest, long size) {
  ++copies;
  bytes += size;
  largest = std::max(largest, size);
}

// Strided or converting copies take the way over a dense tensor on the host.
at::Tensor to_host(const at::Tensor& source) {
  TORCH_CHECK(source.is_non_overlapping_and_dense(), "this device copies dense tensors only");
  at::Tensor host = at::empty_strided(source.sizes(), source.strides(), source.options().device(at::kCPU));
  if (source.nbytes() == 0) return host;
  std::lock_guard<std::mutex> hold(guard);
  finish_late_copies();
  count(counters.to_host, counters.to_host_bytes, counters.to_host_largest, static_cast<long>(source.nbytes()));
  std::memcpy(host.data_ptr(), usable(source.data_ptr()), source.nbytes());
  return host;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool may_be_late) {
  if (source.sizes() != target.sizes()) return copy_from(source.expand_as(target), target, may_be_late);
  bool from_device = source.is_privateuseone(), into_device = target.is_privateuseone();
  bool plain = source.scalar_type() == target.scalar_type() && source.is_contiguous() && target.is_contiguous();
  if (!plain) {
    at::Tensor host = from_device ? to_host(source) : source;
    if (!into_device) return target.copy_(host), target;
    TORCH_CHECK(target.is_contiguous(), "this device copies into dense tensors only");
    return copy_from(host.to(target.scalar_type()).contiguous(), target, false);
  }
  size_t size = source.nbytes();
  if (size == 0) return target;
  std::lock_guard<std::mutex> hold(guard);
  char* to = into_device ? usable(target.data_ptr()) : static_cast<char*>(target.data_ptr());
  const char* from = from_device ? usable(source.data_ptr()) : static_cast<const char*>(source.data_ptr());
  if (into_device && !from_device) {
    count(counters.to_device, counters.to_device_bytes, counters.to_device_largest, static_cast<long>(size));
    if (may_be_late) {
      late.push_back({to, from, size});
      return target;
    }
  }
  if (from_device && !into_device)
    count(counters.to_host, counters.to_host_bytes, counters.to_host_largest, static_cast<long>(size));
  finish_late_copies();
  std::memmove(to, from, size);
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  return copy_from(source, target, false);
}

const at::Tensor& resize(const at::Tensor& tensor, c10::SymIntArrayRef symbolic, std::optional<at::MemoryFormat>) {
  auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  size_t bytes = c10::multiply_integers(size) * tensor.itemsize();
  auto* implementation = tensor.unsafeGetTensorImpl();
  if (bytes > implementation->unsafe_storage().nbytes()) {
    auto storage = implementation->unsafe_storage();
    storage.set_data_ptr_noswap(allocator.allocate(bytes));
    storage.set_nbytes(bytes);
  }
  implementation->set_sizes_contiguous(size);
  return tensor;
}

at::Tensor& zero(at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "this device zeroes dense tensors only");
  std::lock_guard<std::mutex> hold(guard);
  finish_late_copies();
  if (tensor.nbytes() != 0) std::memset(usable(tensor.data_ptr()), 0, tensor.nbytes());
  return tensor;
}

at::Tensor& fill(at::Tensor& tensor, const at::Scalar& value) {
  copy_from(at::full(tensor.sizes(), value, tensor.options().device(at::kCPU)), tensor, false);
  return tensor;
}

at::Scalar item(const at::Tensor& tensor) { return at::_local_scalar_dense(to_host(tensor)); }

// The same bytes as a tensor of the host, through the second mapping: a kernel may read them, and nothing is copied.
at::Tensor alias(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_privateuseone()) return tensor;
  auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  std::lock_guard<std::mutex> hold(guard);
  finish_late_copies();
  return at::from_blob(usable(tensor.data_ptr()), tensor.sizes(), tensor.strides(), options);
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  auto host_bias = bias && bias->defined() ? std::optional<at::Tensor>(alias(*bias)) : std::nullopt;
  return at::convolution_symint(alias(input), alias(weight), host_bias, stride, padding, dilation, transposed,
                                output_padding, groups)
      .to(input.device());
}

// Every tensor among the arguments becomes its alias; of the answer, what was written into an argument is that argument,
// and everything else goes to the device.
void on_the_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  size_t first = stack->size() - op.schema().arguments().size();
  std::vector<std::pair<at::Tensor, at::Tensor>> written;
  for (size_t place = first; place < stack->size(); ++place) {
    c10::IValue& value = (*stack)[place];
    if (value.isTensor()) {
      at::Tensor given = value.toTensor();
      value = alias(given);
      if (op.schema().is_mutable({c10::SchemaArgType::input, place - first})) written.emplace_back(value.toTensor(), given);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(alias(tensor));
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(at::kCPU);
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (size_t place = first; place < stack->size(); ++place) {
    c10::IValue& value = (*stack)[place];
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    at::Tensor answer = value.toTensor();
    auto same = std::find_if(written.begin(), written.end(), [&](const auto& pair) { return pair.first.is_same(answer); });
    value = same == written.end() ? answer.contiguous().to(c10::Device(device_type, 0)) : same->second;
  }
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage) { return at::cpu::set_(tensor, std::move(storage)); }

at::Tensor& set_storage_offset(at::Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef size,
                               at::IntArrayRef stride) {
  return at::cpu::set_(tensor, std::move(storage), offset, size, stride);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("zero_", zero);
  m.impl("fill_.Scalar", fill);
  m.impl("_local_scalar_dense", item);
  m.impl("convolution_overrideable", convolution);
  m.impl("as_strided", at::cpu::as_strided);
  m.impl("view", at::cpu::view);
  m.impl("_reshape_alias", at::cpu::_reshape_alias);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_host>()); }

extern "C" {
const Counters* fake_device_counters() { return &counters; }
void fake_device_synchronize() {
  std::lock_guard<std::mutex> hold(guard);
  finish_late_copies();
}
}
