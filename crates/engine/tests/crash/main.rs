//! Images are cut off from power at every point of generated histories.
//!
//! After each cut the image opens, a check finds at worst leaks, what was flushed is there, and each sector that was
//! not is old or new. How many cuts there are in all is asserted; `CATENA_CRASH_CUTS` asks for more
//! (`cargo xtask crash --cuts N`), over other histories than the usual ones.

#![cfg(test)]

mod cuts;
mod faults;
mod full;
mod history;
mod layouts;
mod maintain;
mod mending;
mod model;
mod threads;
