//! qcow2 images that are written: against a model, and against what QEMU makes of them.
#![cfg(test)]

mod damage;
mod faults;
mod histories;
mod lab;
mod layout;
