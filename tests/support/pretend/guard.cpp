// What torch asks of a device that it was not compiled for: a guard, hooks and a
// generator, for CUDA and for MPS. They do nothing, so that tensors may say that they
// are on the device, in a backward pass too. The tensors are in tensors.py.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;

template <DeviceType kind>
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kind> {
  static Stream stream() { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  Device getDevice() const override { return Device(kind, 0); }
  Device exchangeDevice(Device) const override { return Device(kind, 0); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
  void record(void**, const Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
using CUDAGuard = Guard<DeviceType::CUDA>;
using MPSGuard = Guard<DeviceType::MPS>;

namespace at {
C10_REGISTER_GUARD_IMPL(CUDA, CUDAGuard)
C10_REGISTER_GUARD_IMPL(MPS, MPSGuard)

// Numbers of the CPU's generator, from a generator that CPU operators refuse.
template <DeviceType kind>
struct DeviceGenerator final : CPUGeneratorImpl {
  DeviceGenerator() {
    device_ = Device(kind, 0);
    key_set_ = DispatchKeySet(
        kind == DeviceType::CUDA ? DispatchKey::CUDA : DispatchKey::MPS);
  }
};

// The answers of a machine that has the device.
template <DeviceType kind, typename Interface>
struct Hooks : Interface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  Allocator* getPinnedMemoryAllocator() const override { return GetCPUAllocator(); }
  Generator getNewGenerator(DeviceIndex) const override {
    return make_generator<DeviceGenerator<kind>>();
  }
};

struct CUDAHooks final : Hooks<DeviceType::CUDA, CUDAHooksInterface> {
  bool hasCUDA() const override { return true; }
  DeviceIndex current_device() const override { return 0; }
};

struct MPSHooks final : Hooks<DeviceType::MPS, MPSHooksInterface> {
  bool hasMPS() const override { return true; }
};

// torch made its hooks when it was imported, and keeps them: put ours in their place.
// They hold no data, so only the table of their functions changes.
template <typename New, typename Old>
void replace(const Old& hooks) {
  static_assert(sizeof(New) == sizeof(Old));
  new (const_cast<Old*>(&hooks)) New();
}
} // namespace at

extern "C" {
void begin_cuda() { at::replace<at::CUDAHooks>(at::detail::getCUDAHooks()); }
void end_cuda() { at::replace<at::CUDAHooksInterface>(at::detail::getCUDAHooks()); }
void begin_mps() { at::replace<at::MPSHooks>(at::detail::getMPSHooks()); }
void end_mps() { at::replace<at::MPSHooksInterface>(at::detail::getMPSHooks()); }
}
