//! One image, written in turn by us, by qemu-nbd's client, by a running qemu-system and by qemu-io.
#![cfg(test)]

use catena_engine::{Disk, GuestOffset, Qcow2Disk, Unmap, WritableDisk};
use catena_storage::{LocalFile, OpenOptions};
use catena_testkit::{Dice, Folder};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZE: u64 = 8 << 20;
const SECTOR: u64 = 512;

/// What is written: a byte over a range, or zeros.
#[derive(Clone, Copy)]
struct Written {
    byte: u8,
    start: u64,
    len: u64,
}

impl Written {
    fn draw(dice: &mut Dice) -> Self {
        let start = dice.below(SIZE / SECTOR) * SECTOR;
        let len = (1 + dice.below(400)) * SECTOR;
        Self {
            byte: dice.below(5) as u8,
            start,
            len: len.min(SIZE - start),
        }
    }

    fn apply(self, model: &mut [u8]) {
        model[self.start as usize..(self.start + self.len) as usize].fill(self.byte);
    }

    /// As qemu-io takes it.
    fn command(self) -> String {
        match self.byte {
            0 => format!("write -z {} {}", self.start, self.len),
            byte => format!("write -P {byte} {} {}", self.start, self.len),
        }
    }
}

fn by_us(image: &Path, writes: &[Written]) {
    let storage = LocalFile::open(image, &OpenOptions::new().write(true)).unwrap();
    let disk = Qcow2Disk::open(Arc::new(storage), None, None).unwrap();
    for written in writes {
        let start = GuestOffset(written.start);
        match written.byte {
            0 => disk.write_zeroes(start, written.len, Unmap::Allow).unwrap(),
            byte => disk.write_at(&vec![byte; written.len as usize], start).unwrap(),
        }
    }
    disk.close().unwrap();
}

fn by_qemu_io(folder: &Folder, writes: &[Written]) {
    let commands: Vec<_> = writes.iter().map(|written| written.command()).collect();
    folder.io(
        "qcow2",
        "image.qcow2",
        &commands.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

fn by_qemu_nbd(folder: &Folder, writes: &[Written]) {
    let socket = folder.file("nbd.sock");
    let mut server = Command::new("qemu-nbd")
        .args(["-f", "qcow2", "--socket"])
        .arg(&socket)
        .arg(folder.file("image.qcow2"))
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20) && server.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut client = Command::new("qemu-io");
    client.args(["-f", "raw"]);
    for written in writes {
        client.args(["-c", &written.command()]);
    }
    client
        .args(["-c", "flush"])
        .arg(format!("nbd+unix:///?socket={}", socket.display()));
    let told = client.output().unwrap();
    assert!(told.status.success(), "{told:?}");
    // It ends with its only client.
    assert!(server.wait().unwrap().success());
    let _ = std::fs::remove_file(socket);
}

fn by_qemu_system(folder: &Folder, writes: &[Written]) {
    let mut guest = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-S",
            "-nodefaults",
            "-display",
            "none",
            "-monitor",
            "stdio",
            "-drive",
        ])
        .arg(format!(
            "if=none,id=disk,format=qcow2,file={}",
            folder.file("image.qcow2").display()
        ))
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut monitor = guest.stdin.take().unwrap();
    for written in writes {
        writeln!(monitor, "qemu-io disk \"{}\"", written.command()).unwrap();
    }
    writeln!(monitor, "quit").unwrap();
    let told = guest.wait_with_output().unwrap();
    assert!(told.status.success());
    let said = String::from_utf8_lossy(&told.stdout);
    assert_eq!(said.matches("ops;").count(), writes.len(), "{said}");
}

#[test]
fn an_image_is_written_in_turn_by_us_and_by_every_program_of_qemu() {
    for options in [
        "-o cluster_size=64k",
        "-o cluster_size=4k",
        "-o extended_l2=on,cluster_size=32k",
        "-o compat=0.10",
    ] {
        let folder = Folder::new();
        folder.img(&format!("create -q -f qcow2 {options} image.qcow2 8M"));
        let image = folder.file("image.qcow2");
        let mut model = vec![0; SIZE as usize];
        let mut dice = Dice::new(7);
        for turn in 0..8 {
            let writes: Vec<_> = (0..6).map(|_| Written::draw(&mut dice)).collect();
            match turn % 4 {
                1 => by_qemu_nbd(&folder, &writes),
                3 if turn == 3 => by_qemu_system(&folder, &writes),
                3 => by_qemu_io(&folder, &writes),
                _ => by_us(&image, &writes),
            }
            writes.iter().for_each(|written| written.apply(&mut model));
            folder.img("check -q -f qcow2 image.qcow2");
            let disk = Qcow2Disk::open(
                Arc::new(LocalFile::open(&image, &OpenOptions::new().write(true)).unwrap()),
                None,
                None,
            );
            let mut seen = vec![0xa5; model.len()];
            disk.unwrap().read_at(&mut seen, GuestOffset(0)).unwrap();
            assert!(seen == model, "turn {turn}, {options}");
        }
        std::fs::write(folder.file("model.raw"), &model).unwrap();
        folder.img("compare -q -f qcow2 -F raw image.qcow2 model.raw");
    }
}
