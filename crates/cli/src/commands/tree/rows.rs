//! The forest as rows: each base above its overlays, each image once, however deep and in whatever circles it goes.

use super::model::{Shown, ShownImage};
use std::collections::HashMap;
use std::path::Path;

/// An image in its row.
#[derive(Debug)]
pub struct Row<'a> {
    pub image: &'a ShownImage,
    /// Layers below it.
    pub depth: usize,
    /// For each layer below it but the last, and then for itself: whether others of the same base follow.
    pub follows: Vec<bool>,
    /// Its name, shortened where it lies in its base's folder.
    pub name: String,
    /// Whether it is the first that is drawn of images that stand on each other in a circle.
    pub circle: bool,
}

/// Levels that are indented; what stands higher is drawn beneath the last of them.
pub const INDENTED: usize = 24;

/// The rows.
pub fn rows(shown: &Shown) -> Vec<Row<'_>> {
    let by_number: HashMap<usize, &ShownImage> =
        shown.images.iter().map(|image| (image.number, image)).collect();
    let mut drawn = HashMap::new();
    let mut rows = Vec::new();
    let has_base = |image: &&ShownImage| {
        let base = image.backing.as_ref().and_then(|edge| edge.to);
        base.is_some_and(|base| by_number.contains_key(&base))
    };
    let (above, roots): (Vec<_>, Vec<_>) = shown.images.iter().partition(has_base);
    let roots = roots.into_iter().filter(|image| !image.is_data);
    // What is in no row behind the roots' trees is part of a circle.
    for root in roots.chain(above) {
        let mut waiting = vec![(root, 0, Vec::new(), None)];
        while let Some((image, depth, follows, folder)) = waiting.pop() {
            if drawn.insert(image.number, ()).is_some() {
                continue;
            }
            let mut overlays: Vec<_> = image
                .above
                .iter()
                .filter_map(|number| by_number.get(number))
                .collect();
            overlays.sort_by(|a, b| a.path.cmp(&b.path));
            let path = Path::new(&image.path);
            for (rank, overlay) in overlays.iter().rev().enumerate() {
                let mut follows: Vec<bool> = follows.clone();
                if depth < INDENTED {
                    follows.push(rank > 0);
                } else if let Some(last) = follows.last_mut() {
                    *last = rank > 0;
                }
                waiting.push((overlay, depth + 1, follows, path.parent()));
            }
            let short = path
                .file_name()
                .filter(|_| folder.is_some() && folder == path.parent());
            let name = short.map_or_else(|| image.path.clone(), |name| name.display().to_string());
            rows.push(Row {
                image,
                depth,
                follows,
                name,
                circle: depth == 0 && has_base(&image),
            });
        }
    }
    rows
}

/// What is to be said of an image beside its sizes: whether it is bad, and the words.
pub fn notes(row: &Row<'_>) -> Vec<(bool, String)> {
    let image = row.image;
    let mut notes = Vec::new();
    if row.circle {
        notes.push((true, "its chain comes back to itself".to_owned()));
    }
    if let Some(trouble) = &image.trouble {
        notes.push((true, trouble.clone()));
    }
    for edge in image.broken() {
        let what = if image
            .data_file
            .as_ref()
            .is_some_and(|file| std::ptr::eq(file, edge))
        {
            "data file"
        } else {
            "backing image"
        };
        let why = edge.error.as_deref().unwrap_or_default();
        notes.push((true, format!("{what} '{}' cannot be reached: {why}", edge.text)));
    }
    let detail = image.stamped_detail.as_deref().unwrap_or_default();
    match image.stamped {
        "changed" => notes.push((true, format!("its base is not what it was: {detail}"))),
        "emptied" => {
            let note = format!("its base is not what it was ({detail}), but it holds nothing");
            notes.push((false, note));
        }
        "other_reference" => {
            let note = "its base is another image than the one that its stamp is of";
            notes.push((false, note.to_owned()));
        }
        "unknown" => notes.push((false, format!("its base is not held against its stamp: {detail}"))),
        _ => {}
    }
    if let Some(looks) = image.looks_like {
        notes.push((true, format!("looks like {looks}, used as {}", image.format)));
    }
    if let Some(backing) = &image.backing {
        if backing.format.as_ref().is_none_or(String::is_empty) && image.format == "qcow2" {
            notes.push((false, "format of its backing image not recorded".to_owned()));
        }
        if backing.path.is_none() && backing.error.is_none() {
            notes.push((false, format!("stands on '{}', not on this host", backing.text)));
        }
    }
    if let Some(file) = &image.data_file
        && let Some(path) = &file.path
    {
        notes.push((false, format!("data in {path}")));
    }
    notes.extend(image.users.iter().map(|user| (false, format!("used by {user}"))));
    notes.extend(
        image
            .other_names
            .iter()
            .map(|name| (false, format!("also {name}"))),
    );
    notes
}
