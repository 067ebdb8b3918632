//! What `catena tree` shows: facts of a forest, as the JSON output has them. `docs/json.md` says what each field means.
//!
//! The tree, the graph and the picture are drawn from this alone.

use crate::commands::facts;
use crate::commands::stamp::words;
use crate::text::ago;
use catena::Forest;
use catena::forest::{Edge, Image, Sizes, To};
use catena::stamp::Stamped;
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// A forest.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// By name.
    pub images: Vec<ShownImage>,
    /// Files that look raw and that nothing names, which are not shown.
    pub others: usize,
    /// What could not be looked into.
    pub errors: Vec<String>,
}

/// An image. Others are spoken of by their names.
#[derive(Debug, Serialize)]
pub struct ShownImage {
    pub path: String,
    pub other_names: Vec<String>,
    pub inside: bool,
    pub format: &'static str,
    /// What its header looks like, where its overlays take it for something else.
    pub looks_like: Option<&'static str>,
    pub virtual_size: Option<u64>,
    pub file_size: u64,
    pub on_disk: u64,
    pub alone: u64,
    pub shared: u64,
    /// Seconds since 1970.
    pub modified: u64,
    pub backing: Option<ShownEdge>,
    pub data_file: Option<ShownEdge>,
    /// What its stamp says of its backing image.
    pub stamped: &'static str,
    pub stamped_detail: Option<String>,
    pub overlays: Vec<String>,
    pub data_of: Vec<String>,
    pub needed: bool,
    pub users: Vec<String>,
    pub trouble: Option<String>,
    /// Its number in the forest, and those of what stands on it.
    #[serde(skip)]
    pub number: usize,
    #[serde(skip)]
    pub above: Vec<usize>,
    #[serde(skip)]
    pub is_data: bool,
}

/// What an image names.
#[derive(Debug, Serialize)]
pub struct ShownEdge {
    pub text: String,
    pub format: Option<String>,
    /// The image that it leads to.
    pub path: Option<String>,
    /// Why it leads nowhere.
    pub error: Option<String>,
    #[serde(skip)]
    pub to: Option<usize>,
}

impl Shown {
    /// Gathers it; with `all`, files that look like nothing in particular, too.
    pub fn of(forest: &Forest, stamped: &[Stamped], all: bool) -> Self {
        let name = |number: &usize| {
            let image = forest.images().get(*number);
            image.map_or_else(String::new, |image| image.path().display().to_string())
        };
        let edge = |edge: &Edge| ShownEdge {
            text: edge.text.clone(),
            format: edge.format.clone(),
            path: edge.image().map(|number| name(&number)),
            error: match &edge.to {
                To::Broken(_, error) => Some(facts::ErrorFacts::of(error).full()),
                _ => None,
            },
            to: edge.image(),
        };
        let sizes = Sizes::of(forest);
        let mut images: Vec<_> = forest
            .images()
            .iter()
            .enumerate()
            .zip(sizes)
            .filter(|((_, image), _)| all || image.is_image())
            .map(|((number, image), sizes)| (number, image, sizes, stamped.get(number).map(words)))
            .map(|(number, image, sizes, stamped)| ShownImage {
                path: image.path().display().to_string(),
                other_names: image
                    .names
                    .iter()
                    .skip(1)
                    .map(|name| name.display().to_string())
                    .collect(),
                inside: image.inside,
                format: image.format().as_str(),
                looks_like: (image.format() != image.header.format).then_some(image.header.format.as_str()),
                virtual_size: image.header.virtual_size,
                file_size: image.len,
                on_disk: sizes.own,
                alone: sizes.exclusive,
                shared: sizes.shared,
                modified: image
                    .modified
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs(),
                backing: image.backing.as_ref().map(edge),
                data_file: image.data_file.as_ref().map(edge),
                stamped: stamped.as_ref().map_or("not", |(word, _)| word),
                stamped_detail: stamped.and_then(|(_, detail)| detail),
                overlays: image.overlays.iter().map(name).collect(),
                data_of: image.data_of.iter().map(name).collect(),
                needed: image.is_needed(),
                users: Vec::new(),
                trouble: image.header.trouble.clone(),
                number,
                above: image.overlays.clone(),
                is_data: !image.data_of.is_empty() && image.overlays.is_empty(),
            })
            .collect();
        let others = forest.images().len() - images.len();
        let paths: Vec<_> = images
            .iter()
            .filter_map(|shown| forest.images().get(shown.number))
            .map(Image::path)
            .collect();
        let holders = catena_storage::holders_of(&paths).unwrap_or_default();
        for (image, holders) in images.iter_mut().zip(holders) {
            image.users = holders.iter().map(ToString::to_string).collect();
        }
        images.sort_by(|a, b| a.path.cmp(&b.path));
        Self {
            images,
            others,
            errors: forest
                .errors
                .iter()
                .map(|error| facts::ErrorFacts::of(error).full())
                .collect(),
        }
    }

    /// Whether an image names something that cannot be reached, or that is not what it was, or something could not be looked into.
    pub fn is_wrong(&self) -> bool {
        let is_wrong = |image: &ShownImage| image.broken().next().is_some() || image.base_changed();
        !self.errors.is_empty() || self.images.iter().any(is_wrong)
    }
}

impl ShownImage {
    /// How long ago it was written last.
    pub fn age(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ago(now.as_secs().saturating_sub(self.modified))
    }

    /// Whether it stands on an image that is not what it was.
    pub fn base_changed(&self) -> bool {
        self.stamped == "changed"
    }

    /// What it names that leads nowhere.
    pub fn broken(&self) -> impl Iterator<Item = &ShownEdge> {
        let edges = self.backing.iter().chain(&self.data_file);
        edges.filter(|edge| edge.error.is_some())
    }
}
