//! What our qemu-img's convert, dd, rebase, resize and bench leave behind, beside the real one's: the same text and status, the same
//! guest's disk, and clusters in the same places as far as `check` tells.
#![cfg(test)]

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const REAL: &str = "qemu-img";

const SETUP: &str = "
qemu-img create -q -f qcow2 base.qcow2 4M
qemu-io -c 'write -P 1 1M 1M' -c 'write -P 2 3M 64k' -c 'write -P 3 3500k 100k' base.qcow2
qemu-img create -q -f qcow2 other.qcow2 4M
qemu-io -c 'write -P 1 1M 1M' -c 'write -P 8 2M 64k' other.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
qemu-io -c 'write -P 5 1500k 128k' -c 'write -P 5 2M 128k' mid.qcow2
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 5M
qemu-io -c 'write -P 6 3M 64k' -c 'write -z 1M 128k' -c 'write -P 9 4500k 64k' top.qcow2
qemu-img snapshot -c one base.qcow2
qemu-io -c 'write -P 7 64k 64k' base.qcow2
qemu-img create -q -f qcow2 empty.qcow2 8M
qemu-img create -q -f raw r.raw 1M
qemu-io -f raw -c 'write -P 4 128k 128k' r.raw
";

/// Command lines that leave `t`, or change the image that is named behind the bar.
const CASES: &str = "
convert -p -O qcow2 top.qcow2 t | t
convert -p -S 0 -O qcow2 base.qcow2 t | t
convert -p -c -O qcow2 top.qcow2 t | t
convert -c -O qcow2 -o compression_type=zstd,cluster_size=4k top.qcow2 t | t
convert -O qcow2 -o cluster_size=512 top.qcow2 t | t
convert -O qcow2 -o cluster_size=2M top.qcow2 t | t
convert -O qcow2 -o extended_l2=on top.qcow2 t | t
convert -O qcow2 -o compat=0.10 top.qcow2 t | t
convert -O qcow2 -o refcount_bits=1 top.qcow2 t | t
convert -O qcow2 -B mid.qcow2 -F qcow2 top.qcow2 t | t
convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 t | t
convert -O qcow2 -B other.qcow2 -F qcow2 r.raw t | t
convert -O qcow2 -c -B mid.qcow2 -F qcow2 top.qcow2 t | t
convert -O qcow2 -l one base.qcow2 t | t
convert -O qcow2 -l snapshot.id=1 base.qcow2 t | t
convert -O qcow2 -m 1 -W base.qcow2 r.raw t | t
convert -n -O qcow2 base.qcow2 empty.qcow2 | empty.qcow2
convert -n -O qcow2 --target-is-zero base.qcow2 empty.qcow2 | empty.qcow2
convert -n -B mid.qcow2 -O qcow2 other.qcow2 top.qcow2 | top.qcow2
dd if=top.qcow2 of=t -O qcow2 bs=1M skip=1 count=3 | t
dd if=top.qcow2 of=t -O qcow2 bs=1000 count=77 | t
rebase -p -b base.qcow2 -F qcow2 top.qcow2 | top.qcow2
rebase -p -b other.qcow2 -F qcow2 top.qcow2 | top.qcow2
rebase -p -c -b other.qcow2 -F qcow2 top.qcow2 | top.qcow2
rebase -p -b '' top.qcow2 | top.qcow2
rebase -u -b other.qcow2 -F qcow2 top.qcow2 | top.qcow2
resize top.qcow2 +1M | top.qcow2
resize -q base.qcow2 200M | base.qcow2
resize --preallocation=metadata empty.qcow2 +1M | empty.qcow2
bench -w -d 1 -s 4k -S 100k -c 120 empty.qcow2 | empty.qcow2
bench -w -d 1 -s 4k --pattern 7 -o 1020k -S 300k -c 30 empty.qcow2 | empty.qcow2
bench -s 3000 -c 3000 empty.qcow2 | empty.qcow2
";

fn shell(line: &str, folder: &Path) {
    let mut sh = Command::new("sh");
    sh.args(["-c", line]).current_dir(folder).stdout(Stdio::null());
    assert!(sh.status().unwrap().success(), "{line}");
}

/// What is said and left behind.
fn outcome(program: &OsStr, words: &str, left: &str, images: &Path) -> String {
    let folder = catena_testkit::scratch().unwrap();
    let folder = folder.path();
    shell(&format!("cp -a --sparse=auto {}/. .", images.display()), folder);
    let words: Vec<_> = words
        .split_whitespace()
        .map(|word| word.trim_matches('\''))
        .collect();
    let mut command = Command::new(program);
    command
        .arg0(REAL)
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null());
    let done = command.output().unwrap();
    let said: String = String::from_utf8_lossy(&done.stdout)
        .lines()
        .filter(|line| !line.starts_with("Run completed"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut text = format!(
        "{:?}\n{said}{}",
        done.status.code(),
        String::from_utf8_lossy(&done.stderr)
    );
    for tool in [
        format!("qemu-img check -f qcow2 {left} >&2"),
        format!("qemu-img info -f qcow2 {left} | grep -e virtual -e backing -e compat >&2"),
        format!("qemu-img convert -f qcow2 -O raw {left} as.raw && sha256sum as.raw >&2"),
    ] {
        let mut sh = Command::new("sh");
        let told = sh.args(["-c", &tool]).current_dir(folder).output().unwrap();
        text.push_str(&String::from_utf8_lossy(&told.stderr));
    }
    text
}

#[test]
fn disks_and_the_places_of_their_clusters_are_those_that_qemu_img_makes() {
    let images = catena_testkit::scratch().unwrap();
    for line in SETUP.lines().filter(|line| !line.is_empty()) {
        shell(line, images.path());
    }
    let ours = Path::new(env!("CARGO_BIN_EXE_catena"));
    let mut differences = Vec::new();
    for case in CASES.lines().filter(|line| !line.is_empty()) {
        let (words, left) = case.split_once(" | ").unwrap();
        let theirs = outcome(OsStr::new(REAL), words, left, images.path());
        let ours = outcome(ours.as_os_str(), words, left, images.path());
        if theirs != ours {
            differences.push(format!(
                "qemu-img {words}\n--- theirs\n{theirs}\n--- ours\n{ours}"
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}
