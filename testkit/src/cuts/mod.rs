//! A program cut off anywhere, from outside: killed or failed at each of its system calls ([`Operation::strike`]), or its folders cut off from
//! power at any instant ([`Operation::record`], [`Recording::cuts`]).
//!
//! `strace` stops the program and records it, so it is the real one that is tested, and every change it makes to a file is met, whoever
//! in the program makes it. A machine on which nothing may be traced fails the test.

mod disk;
mod draw;
mod operation;
mod record;
mod strace;
mod tree;

pub use draw::{Cuts, Order};
pub use operation::{Fault, Operation, Point, Struck};
pub use record::Recording;
pub use tree::Tree;
