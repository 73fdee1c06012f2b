"""The model itself: the only place that knows torch.

Rules of this room: a sealed model cannot run code. Its graph is held against allow-lists before torch reads it, its
tensors are views of private memory, and it answers only after its known answers came out right on this device.
``export`` is the vendor's side and the only module that opens a ``.pt2``.
"""
