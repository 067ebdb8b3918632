//! Housekeeping on a medium that runs full, after more and more bytes: no image shows anything else, and once there is room what was begun
//! is finished, by `catena resume` or by the same command.

use crate::common::{Answer, Images};
use std::process::Command;

/// In `small`, a medium of its own, so many KiB are free when the command begins; more each time, until they are enough. Prints what went
/// wrong, and in the end how often it was too full.
const SCRIPT: &str = r#"
mount -t tmpfs -o size=64m tmpfs small || exit 77
views() {
    for image in $KEPT; do
        seen=
        for folder in work small small/there; do
            if [ -e $folder/$image ]; then seen=$("$CATENA" hash -f qcow2 $folder/$image 2>&1); break; fi
        done
        [ "$seen" = "$(cat $image.hash)" ] || echo "with $free KiB, $1: $image: $seen"
    done
}
for image in $KEPT; do "$CATENA" hash -f qcow2 images/$image > $image.hash; done
free=4 round=0 resumed=0
while [ $free -lt 8192 ]; do
    mount -o remount,size=64m small
    rm -rf work; find small -mindepth 1 -delete
    if [ "$WORK" = work ]; then mkdir work small/there; fi
    cp -a images/. $WORK
    mount -o remount,size=$(($(df -k --output=used small | tail -n 1) + free))k small
    (cd $WORK && "$CATENA" $WORDS) > told 2>&1
    status=$?
    views "at once"
    [ $status = 0 ] && break
    grep -q "No space left on device" told || echo "with $free KiB: $(cat told)"
    mount -o remount,size=64m small
    journal=$(find $WORK -name '.catena-*.journal')
    if [ -n "$journal" ] && [ $((round % 2)) = 0 ]; then again=resume resumed=$((resumed + 1)); else again=$WORDS; fi
    (cd $WORK && "$CATENA" $again) > told 2>&1 || echo "with $free KiB, $again: $(cat told)"
    views "in the end"
    for gone in $GONE; do [ ! -e $WORK/$gone ] || echo "with $free KiB: $gone is there"; done
    left=$(find $WORK small -name '*catena*')
    [ -z "$left" ] || echo "with $free KiB: $left"
    free=$((free + STEP)) round=$((round + 1))
done
echo "too full $round times, resumed $resumed"
"#;

/// l0 <- l1 <- l2 <- l3 <- l4, in a folder `images`, each with something of its own.
fn images() -> Images {
    let images = Images::new();
    images.run("mkdir", &["images", "small"]);
    let create = "create -q -f qcow2 -o cluster_size=4k";
    images.img(&format!("{create} images/l0.qcow2 1M"));
    images.io("qcow2", "images/l0.qcow2", &["write -P 100 0 256k"]);
    for number in 1..5 {
        let below = number - 1;
        images.img(&format!(
            "{create} -b l{below}.qcow2 -F qcow2 images/l{number}.qcow2"
        ));
        let own = format!("write -P {number} {}k 40k", number * 32);
        let far = format!("write -P {} {}k 8k", number + 50, number * 200);
        images.io("qcow2", &format!("images/l{number}.qcow2"), &[&own, &far]);
    }
    images
}

/// Runs a command with ever more room, where `work` is on the medium or beside it.
fn has_no_room(words: &str, work: &str, kept: &str, gone: &str, step: u32) {
    let images = images();
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", SCRIPT])
        .current_dir(images.path())
        .env("CATENA", env!("CARGO_BIN_EXE_catena"))
        .envs([("WORDS", words), ("WORK", work), ("KEPT", kept), ("GONE", gone)])
        .env("STEP", step.to_string())
        .output();
    let Ok(output) = output else {
        catena_testkit::not_tested("there is no unshare");
        return;
    };
    let answer = Answer::of(&output);
    if answer.status == 77 || answer.err.contains("unshare") {
        catena_testkit::not_tested(answer.err);
        return;
    }
    let numbers = answer.out.strip_prefix("too full ");
    let numbers = numbers.and_then(|rest| rest.trim_end().split_once(" times, resumed "));
    let (times, resumed) = numbers.unwrap_or_else(|| panic!("{words}: {answer:?}"));
    assert!(times.parse::<u32>().unwrap() >= 4, "{words}: {answer:?}");
    // What fails in its first step has nothing to be resumed.
    let resumed = resumed.parse::<u32>().unwrap();
    assert!(resumed > 0 || work == "small", "{words}: {answer:?}");
}

#[test]
fn a_removal_that_merges_survives_a_full_medium() {
    has_no_room(
        "rm -q l1.qcow2 l2.qcow2 --merge",
        "small",
        "l0.qcow2 l3.qcow2 l4.qcow2",
        "l1.qcow2 l2.qcow2",
        8,
    );
}

#[test]
fn pruning_survives_a_full_medium() {
    has_no_room(
        "prune -q l4.qcow2 --keep-last 1",
        "small",
        "l0.qcow2 l4.qcow2",
        "l1.qcow2 l2.qcow2",
        8,
    );
}

#[test]
fn a_move_survives_a_full_medium() {
    has_no_room(
        "move -q l0.qcow2 l1.qcow2 l2.qcow2 ../small/there",
        "work",
        "l0.qcow2 l1.qcow2 l2.qcow2 l3.qcow2 l4.qcow2",
        "l0.qcow2 l1.qcow2 l2.qcow2",
        48,
    );
}
