//! An overlay and its backing image: whether they fit each other, and whether they still do.

use super::acl::Acl;
use super::{Code, Cure, Examination, Severity};
use crate::chain::Layer;
use crate::detect::quoted;
use crate::stamp::{Stamped, judge};
use rustix::fs::{Mode, Stat, fstat};
use std::time::Duration;

/// A snapshot's overlay is made a moment before the last write to what becomes its backing image.
const MOMENT: Duration = Duration::from_secs(1);

pub(super) fn check(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) {
    size(examination, number, overlay, backing);
    identity(examination, number, overlay, backing);
    // Stamps tell it better than times.
    if !stamp(examination, number, overlay, backing) {
        age(examination, number, overlay, backing);
    }
    writable(examination, number + 1, overlay, backing);
}

fn size(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) {
    // QEMU rounds a raw file up to whole sectors.
    let whole = |layer: &Layer| Some(layer.virtual_size()?.next_multiple_of(512));
    let (Some(above), Some(below)) = (whole(overlay), whole(backing)) else {
        return;
    };
    let at = (number, overlay.name());
    if above < below {
        examination.find(
            Code::SizeDiffers,
            Severity::Warning,
            at,
            format!("the overlay has {above} bytes, its backing image {below}"),
            format!(
                "the guest does not see the last {} bytes of the backing image: a partition or the backup of its partition \
                 table may end there",
                below - above
            ),
            Cure::command([
                "qemu-img".into(),
                "resize".into(),
                "-f".into(),
                overlay.format.to_string().into(),
                overlay.word(),
                below.to_string().into(),
            ])
            .saying("if the guest is meant to see all of it, while it is off"),
        );
    } else if above > below {
        examination.find(
            Code::SizeDiffers,
            Severity::Note,
            at,
            format!("the overlay has {above} bytes, its backing image {below}"),
            format!(
                "beyond the backing image the guest sees {} bytes of zeros until it writes there, as after a resize",
                above - below
            ),
            Cure::none(),
        );
    }
}

/// VMDK, VHD, VHDX and VDI images know their parents.
fn identity(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) {
    let wanted = overlay
        .description
        .backing
        .as_ref()
        .and_then(|link| link.parent_id);
    let (Some(wanted), Some(found)) = (wanted, backing.description.id) else {
        return;
    };
    if wanted != found {
        examination.find(
            Code::ParentChanged,
            Severity::Error,
            (number, overlay.name()),
            format!(
                "the overlay was made over the image {wanted}, but its backing image '{}' is {found}",
                backing.name()
            ),
            "the backing image was written since, or is another: what the guest sees may be a mixture of both",
            Cure::advice("find the image that the overlay was made over, or restore the backing image from a backup"),
        );
    }
}

/// Whether the overlay's stamp says anything of its backing image.
fn stamp(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) -> bool {
    let at = (number, overlay.name());
    let name = backing.name();
    let renewal = || Cure::command(["catena".into(), "stamp".into(), overlay.word()]);
    match judge(overlay, backing) {
        Stamped::Not | Stamped::Unknown(_) => return false,
        // What was copied, moved or relinked is as good as it was; 'catena stamp --check' tells.
        Stamped::Same | Stamped::Touched => {}
        Stamped::Emptied(differences) => examination.find(
            Code::BaseOutgrown,
            Severity::Note,
            at,
            format!("the backing image '{name}' is not what it was: {differences}; but the overlay holds nothing yet"),
            "the guest sees the backing image as it is now",
            renewal().saying("if that is right"),
        ),
        Stamped::OtherReference => examination.find(
            Code::StampOfAnotherBase,
            Severity::Warning,
            at,
            format!("the overlay's stamp is of another image than '{name}': a program that knows no stamps put it on this one"),
            "nobody will notice if the backing image changes; if the reference is wrong, the guest sees a mixture of two disks",
            renewal().saying("if the reference is right"),
        ),
        Stamped::Changed(differences) => examination.find(
            Code::BaseChanged,
            Severity::Error,
            at,
            format!("the backing image '{name}' is not the one that the overlay was made on: {differences}"),
            "what the overlay holds does not fit it: the guest's file systems are damaged, or will be",
            Cure::command([
                "catena".into(),
                "stamp".into(),
                "--accept-base".into(),
                overlay.word(),
            ])
            .saying(
                "restore the backing image from a backup, or find the right one with 'catena heal'; only if it was changed on \
                 purpose and the guest sees what it shall, accept it",
            ),
        ),
    }
    true
}

fn age(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) {
    let modified = |layer: &Layer| layer.file.as_ref()?.identity.modified;
    let (Some(above), Some(below)) = (modified(overlay), modified(backing)) else {
        return;
    };
    // The formats that know their parents tell it better.
    if overlay
        .description
        .backing
        .as_ref()
        .is_some_and(|link| link.parent_id.is_some())
    {
        return;
    }
    let Ok(later) = below.duration_since(above) else {
        return;
    };
    if later > MOMENT {
        examination.find(
            Code::BaseNewer,
            Severity::Warning,
            (number, overlay.name()),
            format!(
                "the backing image '{}' was written {} after the overlay was",
                backing.name(),
                ago(later)
            ),
            "if its content changed, the overlay's file system is damaged; but a merge into it, a repair or a change of its \
             header only makes it look so, and times prove nothing",
            Cure::advice(format!(
                "find out what wrote {}; if that was a guest or a new version of the image, restore it from a backup, or give \
                 up the overlay",
                quoted(backing.word())
            )),
        );
    }
}

fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// Who else may write to a backing image.
fn writable(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) {
    let stat = |layer: &Layer| fstat(layer.file.as_ref()?.storage.opened().ok()?).ok();
    let (Some(above), Some(below), Some(file)) = (stat(overlay), stat(backing), &backing.file) else {
        return;
    };
    // Of a device, its node says nothing: udev makes it anew.
    if file.storage.is_block_device() {
        return;
    }
    let opened = file.storage.opened().ok();
    let acl = opened.and_then(|opened| Acl::of_file(opened).ok().flatten());
    let mut who = writers(&below, acl.as_ref());
    let everybody = below.st_mode & Mode::WOTH.as_raw_mode() != 0;
    if below.st_uid != 0 && below.st_uid != above.st_uid && below.st_mode & Mode::WUSR.as_raw_mode() != 0 {
        who.push(format!(
            "its owner, {}, who does not own the overlay",
            super::user::name_of(below.st_uid)
        ));
    }
    if who.is_empty() {
        return;
    }
    let severity = if everybody {
        Severity::Warning
    } else {
        Severity::Note
    };
    let mut cure = Cure::none();
    if below.st_mode & (Mode::WGRP | Mode::WOTH).as_raw_mode() != 0 {
        // With an access control list, the group's bits are the mask over all that is in it.
        cure = Cure::command(["chmod".into(), "go-w".into(), backing.word()]);
    }
    examination.find(
        Code::BaseWritable,
        severity,
        (number, backing.name()),
        format!("the backing image can be written by {}", who.join(", by ")),
        "a write to it changes every disk that builds on it, and nobody would notice before the file systems break",
        cure,
    );
}

fn writers(stat: &Stat, acl: Option<&Acl>) -> Vec<String> {
    let mut who = Vec::new();
    if stat.st_mode & Mode::WOTH.as_raw_mode() != 0 {
        who.push("everybody".to_owned());
    }
    match acl {
        Some(acl) => who.extend(acl.writers(stat.st_gid)),
        None if stat.st_mode & Mode::WGRP.as_raw_mode() != 0 && stat.st_gid != 0 => {
            who.push(format!("the group {}", super::user::group_name_of(stat.st_gid)));
        }
        None => {}
    }
    who
}
