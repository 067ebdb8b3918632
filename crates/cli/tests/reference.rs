//! `catena reference` as people and scripts call it: what is printed, where, and the exit status.

use std::process::Command;

/// Exit status (-1 for a signal), standard output and standard error.
fn answer(args: &[&str]) -> std::io::Result<(i32, String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_catena"))
        .arg("reference")
        .args(args)
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    ))
}

#[test]
fn prints_libvirts_element() {
    let (status, xml, reason) = answer(&["nbd:h.test:6000:exportname=e", "--output", "xml"]).unwrap();
    assert_eq!((status, reason.as_str()), (0, ""));
    assert_eq!(
        xml,
        "<source protocol='nbd' name='e'>\n  <host name='h.test' port='6000'/>\n</source>\n"
    );
}

#[test]
fn resolves_beside_the_overlay() {
    let (status, xml, _) = answer(&["base", "--overlay", "/img/top.qcow2", "--output", "xml"]).unwrap();
    assert_eq!((status, xml.as_str()), (0, "<source file='/img/base'/>\n"));
    let inside = r#"json:{"driver":"raw","file":{"driver":"file","filename":"base"}}"#;
    let (_, ours, _) = answer(&[inside, "--overlay", "/img/top.qcow2", "--output", "xml"]).unwrap();
    assert_eq!(ours, "<source file='/img/base'/>\n");
    let (_, libvirts, _) = answer(&[
        inside,
        "--overlay",
        "/img/top.qcow2",
        "--output",
        "xml",
        "--as",
        "libvirt",
    ])
    .unwrap();
    assert_eq!(libvirts, "<source file='base'/>\n");
}

#[test]
fn a_refusal_is_one_with_the_reason_on_stderr_and_nothing_on_stdout() {
    let (status, shown, reason) = answer(&["json:{}", "--output", "xml"]).unwrap();
    assert_eq!((status, shown.as_str()), (1, ""));
    assert_eq!(
        reason,
        "catena: JSON backing volume definition '{}' lacks driver name\n"
    );
}

#[test]
fn inline_credentials_are_three_with_the_element_on_stdout() {
    for reader in ["catena", "libvirt"] {
        let (status, xml, reason) =
            answer(&["http://u:secret@h.test/f", "--output", "xml", "--as", reader]).unwrap();
        assert_eq!(status, 3);
        assert_eq!(
            xml,
            "<source protocol='http' name='f'>\n  <host name='h.test' port='80'/>\n</source>\n"
        );
        assert!(
            reason.contains("credential") && !reason.contains("secret"),
            "{reason}"
        );
    }
}

#[test]
fn other_losses_of_place_are_three_by_our_rules_only() {
    let text = r#"json:{"file":{"driver":"file","filename":"/a"},"offset":512}"#;
    assert_eq!(answer(&[text, "--output", "xml"]).unwrap().0, 3);
    assert_eq!(
        answer(&[text, "--output", "xml", "--as", "libvirt"]).unwrap().0,
        0
    );
    let open_end = r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/a"}}"#;
    assert_eq!(answer(&[open_end, "--output", "xml"]).unwrap().0, 3);
    let cache = r#"json:{"driver":"file","filename":"/a","cache.direct":true}"#;
    assert_eq!(answer(&[cache, "--output", "xml"]).unwrap().0, 0);
}

#[test]
fn there_is_no_element_for_what_libvirt_refuses() {
    for (text, reason) in [
        ("file:/a/b", "invalid backing protocol 'file'"),
        ("host_device:/dev/x", "invalid backing protocol 'host_device'"),
        (
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}"#,
            "driver",
        ),
        (
            r#"json:{"driver":"nfs","server":{"type":"inet","host":"h"},"path":"/a"}"#,
            "user",
        ),
    ] {
        let (status, xml, said) = answer(&[text, "--output", "xml"]).unwrap();
        assert_eq!((status, xml.as_str()), (1, ""), "{text}");
        assert!(said.contains(reason), "{said}");
        let by_libvirt = answer(&[text, "--output", "xml", "--as", "libvirt"]).unwrap();
        assert_eq!(by_libvirt, (status, xml, said));
        assert_eq!(answer(&[text]).unwrap().0, 0, "{text}");
    }
}

#[test]
fn a_passed_descriptor_is_a_transport_as_it_is_for_libvirt() {
    for reader in ["catena", "libvirt"] {
        let (status, xml, _) = answer(&["nbd+fd://x/e", "--output", "xml", "--as", reader]).unwrap();
        assert_eq!(status, 0);
        assert_eq!(
            xml,
            "<source protocol='nbd' name='e'>\n  <host name='x' transport='fd'/>\n</source>\n"
        );
    }
    assert!(
        answer(&["nbd+fd://x/e"])
            .unwrap()
            .1
            .contains("QEMU knows no 'nbd+fd://'")
    );
}

#[test]
fn names_that_xml_cannot_say_are_three() {
    use std::os::unix::ffi::OsStrExt;
    for name in [b"/a\x01b".as_slice(), b"/a\xffb", b"nbd://h/%01"] {
        let output = Command::new(env!("CARGO_BIN_EXE_catena"))
            .args(["reference", "--output", "xml"])
            .arg(std::ffi::OsStr::from_bytes(name))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.starts_with(b"<source "), "{output:?}");
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(reason.contains("not UTF-8"), "{reason}");
    }
    assert_eq!(answer(&["/a\nb\u{e9}", "--output", "xml"]).unwrap().0, 0);
}

#[test]
fn text_says_where_libvirt_and_qemu_part() {
    let (status, text, _) = answer(&["file:/a\u{1b}[31m"]).unwrap();
    assert_eq!(status, 0);
    assert!(
        text.starts_with("kind     file\npath     /a\u{fffd}[31m\n"),
        "{text:?}"
    );
    assert!(
        text.contains("differs  libvirt refuses it (invalid backing protocol 'file')"),
        "{text}"
    );
}

#[test]
fn json_has_the_source_and_what_is_lost() {
    let (status, text, _) = answer(&[
        r#"json:{"driver":"nbd","host":"h","port":9,"tls-creds":"t"}"#,
        "--output",
        "json",
    ])
    .unwrap();
    assert_eq!(status, 0);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["source"]["hosts"][0]["port"], 9);
    assert_eq!(value["recorded"], "nbd://h:9");
    assert_eq!(value["lost"][0]["key"], "tls-creds");
    assert_eq!(value["lost"][0]["kind"], "setting");
    assert!(
        value["differs_from_qemu"]
            .as_str()
            .unwrap()
            .contains("default port")
    );
}

#[test]
fn a_string_cannot_steer_the_terminal() {
    for text in ["nbd:a\u{1b}[2J", "/a\u{1b}[2J\u{9b}1m"] {
        let (_, shown, reason) = answer(&[text]).unwrap();
        let printed = [shown, reason].concat();
        assert!(printed.contains('a'), "{printed}");
        assert!(!printed.contains(['\u{1b}', '\u{9b}']), "{printed}");
    }
}
