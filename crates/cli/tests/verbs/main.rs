//! Catena's own verbs as a user runs them; qemu-img and qemu-io are the oracles.
#![cfg(test)]

mod access;
mod bundles;
mod chains;
#[path = "../common/mod.rs"]
mod common;
mod competing;
mod copies;
mod cut_off;
mod cuts;
mod diffs;
mod forests;
mod full;
mod housekeeping;
mod insides;
mod moves;
mod questions;
mod snapshots;
mod stamps;

use common::{Answer, Images};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};
use std::time::Duration;

/// base.raw <- monday.qcow2 <- tuesday.qcow2, each with bytes of its own.
pub fn chain() -> Images {
    let images = Images::new();
    images.img("create -q -f raw base.raw 4M");
    images.io("raw", "base.raw", &["write -P 1 0 2M"]);
    images.img("create -q -f qcow2 -b base.raw -F raw monday.qcow2");
    images.io(
        "qcow2",
        "monday.qcow2",
        &["write -P 2 1M 256k", "write -z 64k 64k"],
    );
    images.img("create -q -f qcow2 -b monday.qcow2 -F qcow2 tuesday.qcow2");
    images.io("qcow2", "tuesday.qcow2", &["write -P 3 3M 128k"]);
    images.img("convert -O raw tuesday.qcow2 seen.raw");
    images
}

fn done(images: &Images, words: &str) -> Answer {
    let answer = images.catena(&words.split(' ').collect::<Vec<_>>());
    assert_eq!(answer.status, 0, "{words}: {answer:?}");
    answer
}

fn failed(images: &Images, words: &str) -> Answer {
    let answer = images.catena(&words.split(' ').collect::<Vec<_>>());
    assert_eq!(answer.status, 1, "{words}: {answer:?}");
    answer
}

/// What a command says that is stopped with Ctrl-C as soon as it has begun to change something.
fn interrupted(images: &Images, words: &str) -> Answer {
    let mut child = Command::new(env!("CARGO_BIN_EXE_catena"))
        .current_dir(images.path())
        .args(words.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let catches = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() & 2 != 0
    };
    while !catches() {
        assert_eq!(child.try_wait().unwrap(), None, "{words} ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    Answer::of(&child.wait_with_output().unwrap())
}

/// Whether qemu-img finds it sound, and its guest sees what it saw.
fn shows_the_same(images: &Images, image: &str) {
    if !image.ends_with(".raw") {
        images.img(&format!("check -q {image}"));
    }
    images.img(&format!("compare -q seen.raw {image}"));
}
