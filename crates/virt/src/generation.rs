//! Which libvirt is spoken of.

/// Whose shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Generation {
    /// libvirt 9.0: each layer has a format node; there are neither data files nor throttle filters.
    V9,
    /// libvirt 11.3 beside QEMU 9 or later.
    #[default]
    V11,
}
