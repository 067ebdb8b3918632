//! The doctor on images that qemu-img made and that were damaged on purpose: every finding, and that its cure cures.
#![cfg(test)]

mod access;
mod content;
mod lab;
mod links;
mod survey;
