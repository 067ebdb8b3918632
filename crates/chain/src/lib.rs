//! Chains of virtual-machine disk images: detection, policy, diagnosis, repair and reading.
#![forbid(unsafe_code)]
