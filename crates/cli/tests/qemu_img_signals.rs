//! Our qemu-img and signals: one that asks how far it is, and one that ends it.
#![cfg(test)]

use catena_testkit::qemu;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn shell(line: &str, folder: &Path) {
    let mut sh = Command::new("sh");
    sh.args(["-c", line]).current_dir(folder).stdout(Stdio::null());
    assert!(sh.status().unwrap().success(), "{line}");
}

/// Starts our qemu-img in a folder.
fn start(words: &str, folder: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_catena"));
    command
        .arg0("qemu-img")
        .args(words.split(' '))
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn send(signal: &str, child: &Child) {
    let mut kill = Command::new("kill");
    kill.args(["-s", signal, &child.id().to_string()]);
    // It may have ended by itself.
    let _ = kill.stderr(Stdio::null()).status().unwrap();
}

const IMAGES: &str = "
qemu-img create -q -f qcow2 base.qcow2 64M
qemu-io -c 'write -q -P 1 0 32M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
qemu-io -c 'write -q -P 2 16M 32M' top.qcow2
qemu-img convert -O raw top.qcow2 is.raw
";

#[test]
fn who_sends_sigusr1_is_told_how_far_it_is_on_standard_error() {
    let folder = catena_testkit::scratch().unwrap();
    let folder = folder.path();
    shell(IMAGES, folder);
    // So slow that it is asked long before its end.
    let mut child = start("convert -r 8M -O qcow2 top.qcow2 new.qcow2", folder);
    while !folder.join("new.qcow2").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let asking = std::thread::spawn(move || {
        // It listens before it makes the file. It is asked more than once, since the answer comes with the next piece.
        for _ in 0..20 {
            let _ = Command::new("kill")
                .args(["-s", "USR1", &id])
                .stderr(Stdio::null())
                .status();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let number = line
        .strip_prefix("    (")
        .and_then(|rest| rest.strip_suffix("/100%)\n"))
        .unwrap_or_else(|| panic!("{line:?}"));
    assert!((0.0..=100.0).contains(&number.parse::<f32>().unwrap()), "{line}");
    asking.join().unwrap();
    send("KILL", &child);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().all(|line| line.ends_with("/100%)")), "{rest}");
    child.wait().unwrap();
}

#[test]
fn ctrl_c_leaves_a_consistent_chain() {
    let template = catena_testkit::scratch().unwrap();
    shell(IMAGES, template.path());
    shell("qemu-img create -q -f qcow2 other.qcow2 64M", template.path());
    for words in [
        "convert -O qcow2 top.qcow2 new.qcow2",
        "commit top.qcow2",
        "commit -d top.qcow2",
        "rebase -b other.qcow2 -F qcow2 top.qcow2",
    ] {
        for milliseconds in [5, 20, 40, 80, 160] {
            let folder = catena_testkit::scratch().unwrap();
            let folder = folder.path();
            shell(
                &format!("cp -a --sparse=auto {}/. .", template.path().display()),
                folder,
            );
            let mut child = start(words, folder);
            std::thread::sleep(Duration::from_millis(milliseconds));
            send("INT", &child);
            child.wait().unwrap();
            for image in ["base.qcow2", "top.qcow2"] {
                let mut check = Command::new("qemu-img");
                check.args(["check", "-q", image]).current_dir(folder);
                let status = check.stderr(Stdio::null()).status().unwrap().code();
                // At worst there are leaks.
                assert!(matches!(status, Some(0 | 3)), "{words}: {image}: {status:?}");
            }
            let (shown, is) = (folder.join("top.qcow2"), folder.join("is.raw"));
            qemu::img(["compare".as_ref(), shown.as_os_str(), is.as_os_str()])
                .unwrap_or_else(|error| panic!("{words} after {milliseconds} ms: {error}"));
        }
    }
}
