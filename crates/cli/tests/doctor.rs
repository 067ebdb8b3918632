//! `catena doctor` as people and scripts run it: what is printed, what is mended, and the exit status.
#![cfg(test)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Exit status (-1 for a signal), standard output and standard error.
fn doctor(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_catena"))
        .current_dir(dir)
        .arg("doctor")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn img(dir: &Path, args: &str) {
    let output = Command::new("qemu-img")
        .current_dir(dir)
        .args(args.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes the backing format extension, which QEMU writes first, one that nobody knows.
fn forget_format(image: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(&[0x12, 0x34, 0x56, 0x78], 112).unwrap();
}

/// base, mid over it without a recorded format, top over that.
fn chain(dir: &Path) {
    img(dir, "create -q -f qcow2 base.qcow2 1M");
    img(dir, "create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    img(dir, "create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    forget_format(&dir.join("mid.qcow2"));
}

#[test]
fn a_healthy_chain_is_zero() {
    let dir = tempfile::tempdir().unwrap();
    img(dir.path(), "create -q -f qcow2 top.qcow2 1M");
    let (status, shown, _) = doctor(dir.path(), &["top.qcow2"]);
    assert_eq!(
        (status, shown.as_str()),
        (0, "top.qcow2: 1 layer, nothing to report\n")
    );
}

#[test]
fn warnings_are_three_with_the_command_that_cures() {
    let dir = tempfile::tempdir().unwrap();
    chain(dir.path());
    let (status, shown, _) = doctor(dir.path(), &["-f", "qcow2", "top.qcow2"]);
    assert_eq!(status, 3, "{shown}");
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("top.qcow2: 3 layers, 1 warning"));
    assert_eq!(
        lines.next(),
        Some("  warning format-not-recorded layer 1, ./mid.qcow2")
    );
    assert_eq!(
        lines.last(),
        Some("    $ catena relink ./mid.qcow2 --backing base.qcow2 --backing-format qcow2")
    );
    // The command is what it says it is.
    let relinked = Command::new(env!("CARGO_BIN_EXE_catena"))
        .current_dir(dir.path())
        .args([
            "relink",
            "./mid.qcow2",
            "--backing",
            "base.qcow2",
            "--backing-format",
            "qcow2",
        ])
        .status()
        .unwrap();
    assert!(relinked.success());
    let (_, shown, _) = doctor(dir.path(), &["top.qcow2"]);
    assert!(!shown.contains("format-not-recorded"), "{shown}");
}

#[test]
fn errors_are_one_and_wrong_arguments_two() {
    let dir = tempfile::tempdir().unwrap();
    img(
        dir.path(),
        "create -q -u -f qcow2 -b gone.qcow2 -F qcow2 top.qcow2 1M",
    );
    let (status, shown, _) = doctor(dir.path(), &["top.qcow2"]);
    assert_eq!(status, 1, "{shown}");
    assert!(
        shown.contains("error backing-missing layer 0, top.qcow2"),
        "{shown}"
    );
    assert_eq!(doctor(dir.path(), &[]).0, 2);
    assert_eq!(
        doctor(dir.path(), &["--as-user", "no such user", "top.qcow2"]).0,
        2
    );
}

#[test]
fn one_bad_target_does_not_keep_the_others_from_being_examined() {
    let dir = tempfile::tempdir().unwrap();
    chain(dir.path());
    img(dir.path(), "create -q -f qcow2 good.qcow2 1M");
    let targets = ["good.qcow2", "nowhere", "top.qcow2"];
    let (status, shown, _) = doctor(dir.path(), &targets);
    assert_eq!(status, 1, "{shown}");
    for line in [
        "good.qcow2: 1 layer, nothing to report\n",
        "  error image-missing layer 0, nowhere\n",
        "top.qcow2: 3 layers, 1 warning\n",
        "3 chains: 1 error, 1 warning\n",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let (status, shown, _) = doctor(dir.path(), &[targets.as_slice(), &["--output", "json"]].concat());
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((status, value["targets"].as_array().unwrap().len()), (1, 3));
    let target = &value["targets"][1];
    assert_eq!(
        (&target["end"], &target["findings"][0]["code"]),
        (&"broken".into(), &"image-missing".into())
    );
}

#[test]
fn a_plan_changes_nothing_and_fix_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    chain(dir);
    let before = std::fs::read(dir.join("mid.qcow2")).unwrap();
    let (status, shown, _) = doctor(dir, &["--fix", "--dry-run", "top.qcow2"]);
    assert_eq!(status, 3, "{shown}");
    let change = "./mid.qcow2: 'base.qcow2' (format not recorded) becomes 'base.qcow2' (qcow2); the guest's view stays: \
                  it is the same backing image";
    assert!(shown.starts_with(&format!("would fix {change}\n")), "{shown}");
    assert!(std::fs::read(dir.join("mid.qcow2")).unwrap() == before);
    let (status, shown, _) = doctor(dir, &["--fix", "top.qcow2"]);
    assert_eq!(status, 0, "{shown}");
    assert_eq!(
        shown,
        format!("fixed {change}\ntop.qcow2: 3 layers, nothing to report\n")
    );
    img(dir, "check -q -f qcow2 mid.qcow2");
    let (status, shown, _) = doctor(dir, &["--fix", "--output", "json", "top.qcow2"]);
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((status, &value["fixes"]), (0, &serde_json::json!([])), "{shown}");
}

#[test]
fn an_image_in_use_is_not_fixed_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    chain(dir);
    let mut guest = Command::new("qemu-io")
        .current_dir(dir)
        .args(["-f", "qcow2", "mid.qcow2"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while catena_storage::holders(dir.join("mid.qcow2")).unwrap().is_empty() {
        assert!(start.elapsed().as_secs() < 20);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (status, shown, _) = doctor(dir, &["--fix", "mid.qcow2"]);
    guest.kill().unwrap();
    guest.wait().unwrap();
    assert_eq!(status, 1, "{shown}");
    assert!(shown.starts_with("not fixed "), "{shown}");
    assert!(shown.contains("qemu-io"), "{shown}");
}

#[test]
fn json_has_everything_that_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    chain(dir.path());
    let (status, shown, _) = doctor(dir.path(), &["--dry-run", "--output", "json", "."]);
    assert_eq!(status, 3, "{shown}");
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(value["warnings"], 1);
    let target = &value["targets"][0];
    assert_eq!(
        (&target["target"], &target["layers"], &target["end"]),
        (&"./top.qcow2".into(), &3.into(), &"terminated".into())
    );
    let finding = &target["findings"][0];
    assert_eq!(finding["code"], "format-not-recorded");
    assert_eq!(finding["severity"], "warning");
    assert_eq!(finding["layer"], 1);
    assert_eq!(finding["fixable"], true);
    assert_eq!(
        finding["commands"][0],
        "catena relink ./mid.qcow2 --backing base.qcow2 --backing-format qcow2"
    );
    let fix = &value["fixes"][0];
    assert_eq!(
        (&fix["done"], &fix["error"]),
        (&false.into(), &serde_json::Value::Null)
    );
    assert_eq!(fix["cures"][0], "format-not-recorded");
}

#[test]
fn names_in_images_do_not_steer_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    img(
        dir.path(),
        "create -q -u -f qcow2 -b gone\u{1b}[2J -F qcow2 top.qcow2 1M",
    );
    let (_, shown, _) = doctor(dir.path(), &["top.qcow2"]);
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    // Nor do commands, which are right all the same.
    img(dir.path(), "create -q -f qcow2 base\u{1b}[2J 1M");
    img(
        dir.path(),
        "create -q -f qcow2 -b base\u{1b}[2J -F qcow2 bare.qcow2",
    );
    forget_format(&dir.path().join("bare.qcow2"));
    let (_, shown, _) = doctor(dir.path(), &["bare.qcow2"]);
    let command = r"    $ catena relink bare.qcow2 --backing $'base\x1b[2J' --backing-format qcow2";
    assert_eq!(shown.lines().last(), Some(command), "{shown}");
}
