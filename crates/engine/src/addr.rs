//! The two address spaces of an image, kept apart by type.

use std::fmt;

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// This many bytes further on. Saturates, which no checked disk or file reaches.
            #[must_use]
            pub fn plus(self, bytes: u64) -> Self {
                Self(self.0.saturating_add(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

offset! {
    /// A byte address on the guest's disk.
    GuestOffset
}
offset! {
    /// A byte address in an image file or its data file.
    HostOffset
}
