//! Credentials that an image records are nowhere repeated.
#![cfg(test)]

mod common;

use common::{Answer, Images};

/// References with the password `hunter2` in them, and how they are shown.
const REFERENCES: [(&str, &str); 4] = [
    ("http://u:hunter2@h.test/f", "http://u:***@h.test/f"),
    (
        r#"json:{"driver":"iscsi","transport":"tcp","portal":"h.test","target":"t","user":"u","password":"hunter2"}"#,
        r#"json:{"driver":"iscsi","transport":"tcp","portal":"h.test","target":"t","user":"u","password":"***"}"#,
    ),
    ("rbd:p/i:id=u:key=hunter2", "rbd:p/i:id=u:key=***"),
    // Nobody can read it.
    (r#"json:{"password":"hunter2""#, "json:…"),
];

fn silent(answer: &Answer) {
    let said = format!("{}{}", answer.out, answer.err);
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn show_and_info_do_not_repeat_a_password() {
    for (recorded, shown) in REFERENCES {
        let images = Images::new();
        images.run(
            "qemu-img",
            &[
                "create", "-q", "-u", "-f", "qcow2", "-b", recorded, "-F", "qcow2", "r.qcow2", "4M",
            ],
        );
        for output in ["human", "json", "svg", "dot"] {
            silent(&images.catena(&["show", "--output", output, "r.qcow2"]));
        }
        let chain = images.catena(&["show", "--output", "json", "r.qcow2"]).json();
        let named = [
            &chain["end"]["recorded"]["text"],
            &chain["layers"][1]["recorded"]["text"],
        ];
        assert!(named.contains(&&shown.into()), "{chain:#}");
        silent(&images.catena(&["info", "r.qcow2"]));
        silent(&images.catena(&["doctor", "r.qcow2"]));
        silent(&images.catena(&["map", "r.qcow2"]));
        let info = images.catena(&["info", "--output", "json", "r.qcow2"]);
        silent(&info);
        assert_eq!(info.json()["backing"]["text"], shown);
    }
}

#[test]
fn relink_and_rebase_do_not_repeat_a_password() {
    for (recorded, shown) in REFERENCES {
        let images = Images::new();
        images.img("create -q -f qcow2 base.qcow2 4M");
        images.io("qcow2", "base.qcow2", &["write -q -P 1 0 64k"]);
        images.run(
            "qemu-img",
            &[
                "create", "-q", "-u", "-f", "qcow2", "-b", recorded, "r.qcow2", "-F", "qcow2", "4M",
            ],
        );
        let run = |args: &[&str]| {
            let answer = images.catena(&[args, &["r.qcow2", "-F", "qcow2"]].concat());
            silent(&answer);
            answer
        };
        assert_eq!(run(&["relink", "-b", "base.qcow2"]).status, 1);
        let told = run(&["rebase", "-b", "base.qcow2", "--unsafe"]);
        assert_eq!(told.status, 0, "{told:?}");
        assert!(
            told.out
                .contains(&format!("'{shown}' (qcow2) becomes 'base.qcow2'")),
            "{told:?}"
        );
        assert_eq!(run(&["relink", "-b", recorded]).status, 1);
        let back = run(&["rebase", "-b", recorded, "--unsafe"]);
        if shown == "json:…" {
            assert_eq!(back.status, 1, "{back:?}");
            continue;
        }
        assert_eq!(back.status, 0, "{back:?}");
        // It is only shown without: what is recorded is what was asked for.
        let told = images.img("info -U --output json r.qcow2");
        let info: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(info["backing-filename"], recorded);
    }
}

#[test]
fn reference_and_create_do_not_repeat_a_password() {
    let images = Images::new();
    for (recorded, _) in REFERENCES {
        for output in ["text", "json", "xml"] {
            silent(&images.catena(&["reference", recorded, "--output", output]));
        }
        silent(&images.catena(&["create", "top.qcow2", "-b", recorded, "4M"]));
    }
}
