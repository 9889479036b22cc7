//! Takes away what nobody needs, beside pushes and never in their way.
//!
//! **What is needed.** In each repository: the manifests that tags point to and those that are pinned; the children of
//! a needed index; what has a needed manifest as its subject. The blobs of every manifest that is there. Then content
//! that a link or manifest of any repository, or a pinned manifest, names.
//!
//! **Grace.** A push uploads blobs before the manifest that names them, and manifests before their index. So what is not
//! needed goes only after nobody needed it for the time of grace: in memory, it is written down when that began, and
//! whoever is told by us that it is there, or refers to it, takes it off that list. The clock is the caller's and need
//! only go forward; a restart begins the grace anew. In its grace, a manifest keeps its children, too.
//!
//! **Beside pushes.** A collection looks at the disk without holding anything up, so what it saw may be past. Hence:
//!
//! 1. First it has all begin to write down what they touch (`Book::touch`). It does so in the turn (see `store`), so
//!    what was touched before is on the disk now.
//! 2. It looks: repositories, then content.
//! 3. It removes with the turn (nobody changes names meanwhile) and the book (nobody is told meanwhile that something is
//!    there), and only what was not touched since 1.
//!
//! Whoever pushes touches first and looks then, so either it sees that something is gone, or the collection sees that it
//! is needed. Content needs no grace: without a link nobody can be told of it, and a link is made in the turn that
//! gives the content its name.
//!
//! Where a manifest cannot be read, nothing of its repository is taken away: what it names is not known.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

use crate::book::{Charge, Item};
use crate::digest::Digest;
use crate::disk::{Disk, is_there, names, remove, sync_folder, sync_parent};
use crate::error::{Result, StoreError, disk};
use crate::manifest::Manifest;
use crate::name::{Reference, RepositoryName};
use crate::store::{Store, lock, size_of};

/// What must stay though no tag points to it any more: the image of a release.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pinned {
    pub repository: RepositoryName,
    /// Of the manifest or index. Its content stays even if somebody deletes it from the repository.
    pub digest: Digest,
}

/// What a collection took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub manifests: u64,
    /// Blobs that a repository may not read any more.
    pub links: u64,
    pub blobs: u64,
    /// The size of these blobs.
    pub bytes: u64,
    pub uploads: u64,
    pub repositories: u64,
    /// What goes later, unless somebody needs it before its grace is over.
    pub waiting: u64,
}

/// What is freed by one pass is found by the next.
const PASSES: usize = 8;

/// What a manifest that is there refers to.
struct Node {
    children: Vec<Digest>,
    blobs: Vec<Digest>,
    subject: Option<Digest>,
}

/// One repository as it was looked at.
struct Seen {
    name: RepositoryName,
    nodes: HashMap<Digest, Node>,
    /// Subject → what names it.
    referrers: HashMap<Digest, Vec<Digest>>,
    /// Tagged and pinned.
    roots: Vec<Digest>,
    links: Vec<Digest>,
}

/// What a pass goes by.
struct Pass<'a> {
    keep: &'a [Pinned],
    now: Duration,
    grace: Duration,
    /// Content that something names.
    named: HashSet<Digest>,
    candidates: HashSet<Item>,
    removed: u64,
}

impl Store {
    pub(crate) fn collect(&self, keep: &[Pinned], now: Duration) -> Result<Report> {
        let _one = lock(&self.collecting);
        let mut report = Report::default();
        let sessions: Vec<_> = lock(&self.sessions).values().cloned().collect();
        for session in sessions {
            let idle = now.saturating_sub(session.idle_since(now));
            if idle >= self.settings.upload_life {
                self.end_upload(&session);
                report.uploads += 1;
            }
        }
        for _ in 0..PASSES {
            {
                // A change that is half made was touched before, and is seen behind it.
                let _turn = self.turn();
                self.book().begin_collection();
            }
            let mut pass = Pass {
                keep,
                now,
                grace: self.settings.grace,
                named: HashSet::new(),
                candidates: HashSet::new(),
                removed: 0,
            };
            let done = self.pass(&mut pass, &mut report);
            let whole = done.is_ok().then_some(&pass.candidates);
            self.book().end_collection(whole);
            done?;
            report.waiting = pass.candidates.len() as u64;
            if pass.removed == 0 {
                break;
            }
        }
        Ok(report)
    }

    fn pass(&self, pass: &mut Pass<'_>, report: &mut Report) -> Result<()> {
        self.pinned_content(pass)?;
        for name in self
            .disk
            .repositories()
            .map_err(disk("list repositories"))?
        {
            let Some(seen) = self.look(&name, pass)? else {
                continue;
            };
            pass.named.extend(seen.nodes.keys().cloned());
            pass.named.extend(seen.links.iter().cloned());
            self.sweep_manifests(&seen, pass, report)?;
            self.sweep_links(&seen, pass, report)?;
            self.sweep_referrers(&seen)?;
            if seen.nodes.is_empty() && seen.links.is_empty() && seen.roots.is_empty() {
                self.sweep_repository(&name, report)?;
            }
        }
        self.sweep_content(pass, report)
    }

    /// The content of what is pinned, whatever its repository has.
    fn pinned_content(&self, pass: &mut Pass<'_>) -> Result<()> {
        let mut left: Vec<Digest> = pass.keep.iter().map(|pin| pin.digest.clone()).collect();
        let mut read = HashSet::new();
        while let Some(digest) = left.pop() {
            if !read.insert(digest.clone()) {
                continue;
            }
            pass.named.insert(digest.clone());
            let Some(bytes) = self.small_content(&digest)? else {
                continue;
            };
            if let Ok(manifest) = Manifest::parse(&bytes, None) {
                pass.named.extend(manifest.blob_digests());
                left.extend(manifest.children());
            }
        }
        Ok(())
    }

    /// Reads a repository. None where it cannot be understood: then all of it stays.
    fn look(&self, name: &RepositoryName, pass: &mut Pass<'_>) -> Result<Option<Seen>> {
        let mut roots = Vec::new();
        for tag in self.all_tags(name)? {
            match self.resolve(name, &Reference::Tag(tag)) {
                Ok(digest) => roots.push(digest),
                // It went meanwhile.
                Err(StoreError::ManifestUnknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let pins = pass.keep.iter().filter(|pin| pin.repository == *name);
        roots.extend(pins.map(|pin| pin.digest.clone()));
        let links = Disk::digests(&self.disk.links(name)).map_err(disk("list blobs"))?;
        let mut nodes = HashMap::new();
        let mut referrers: HashMap<Digest, Vec<Digest>> = HashMap::new();
        let all = self.manifests(name)?;
        for digest in &all {
            let Some(media_type) = self.media_type(name, digest)? else {
                // It went meanwhile.
                continue;
            };
            let bytes = self.small_content(digest)?;
            let parsed = bytes.map(|bytes| Manifest::parse(&bytes, Some(&media_type)));
            let Some(Ok(manifest)) = parsed else {
                tracing::warn!("nothing of {name} is collected: {digest} cannot be read");
                pass.named.extend(links);
                pass.named.extend(all.iter().cloned());
                return Ok(None);
            };
            if let Some(subject) = &manifest.subject {
                let list = referrers.entry(subject.clone()).or_default();
                list.push(digest.clone());
            }
            let node = Node {
                children: manifest.children().collect(),
                blobs: manifest.blob_digests().collect(),
                subject: manifest.subject,
            };
            nodes.insert(digest.clone(), node);
        }
        Ok(Some(Seen {
            name: name.clone(),
            nodes,
            referrers,
            roots,
            links,
        }))
    }

    fn sweep_manifests(&self, seen: &Seen, pass: &mut Pass<'_>, report: &mut Report) -> Result<()> {
        let mut needed = HashSet::new();
        seen.reach(seen.roots.iter().cloned(), &mut needed);
        let idle: Vec<&Digest> = seen.nodes.keys().filter(|d| !needed.contains(*d)).collect();
        if idle.is_empty() {
            return Ok(());
        }
        let failed = "collect manifests";
        let _turn = self.turn();
        let mut book = self.book();
        let mut over = Vec::new();
        let mut kept = Vec::new();
        for digest in idle {
            let item = Item::Manifest(seen.name.clone(), digest.clone());
            if book.is_over(&item, pass.now, pass.grace) {
                over.push((digest, item));
            } else {
                kept.push(digest.clone());
                pass.candidates.insert(item);
            }
        }
        // What is touched or in its grace keeps what it refers to.
        seen.reach(kept.into_iter(), &mut needed);
        let mut swept = 0;
        for (digest, item) in over {
            if needed.contains(digest) {
                pass.candidates.insert(item);
                continue;
            }
            let subject = seen
                .nodes
                .get(digest)
                .and_then(|node| node.subject.as_ref());
            self.remove_manifest(&mut book, &seen.name, digest, subject)
                .map_err(disk(failed))?;
            book.forget(&item);
            swept += 1;
        }
        drop(book);
        if swept > 0 {
            sync_folder(&self.disk.manifests(&seen.name)).map_err(disk(failed))?;
        }
        pass.removed += swept;
        report.manifests += swept;
        Ok(())
    }

    fn sweep_links(&self, seen: &Seen, pass: &mut Pass<'_>, report: &mut Report) -> Result<()> {
        let needed: HashSet<&Digest> = seen.nodes.values().flat_map(|node| &node.blobs).collect();
        let idle: Vec<_> = seen.links.iter().filter(|d| !needed.contains(d)).collect();
        if idle.is_empty() {
            return Ok(());
        }
        let failed = "collect links";
        let _turn = self.turn();
        let mut swept = 0;
        for digest in idle {
            let item = Item::Link(seen.name.clone(), digest.clone());
            let mut book = self.book();
            if !book.is_over(&item, pass.now, pass.grace) {
                pass.candidates.insert(item);
                continue;
            }
            if remove(&self.disk.link(&seen.name, digest)).map_err(disk(failed))? {
                let charge = Charge {
                    repository: size_of(&self.disk.blob(digest)),
                    names: 1,
                    ..Charge::default()
                };
                book.release(&seen.name, charge);
                swept += 1;
            }
            book.forget(&item);
        }
        if swept > 0 {
            sync_folder(&self.disk.links(&seen.name)).map_err(disk(failed))?;
        }
        pass.removed += swept;
        report.links += swept;
        Ok(())
    }

    /// Entries whose manifests are not there: of pushes and deletions that a kill ended.
    fn sweep_referrers(&self, seen: &Seen) -> Result<()> {
        let failed = "collect referrers";
        let top = self.disk.all_referrers(&seen.name);
        for subject in names(&top).map_err(disk(failed))? {
            let folder = top.join(subject);
            for entry in names(&folder).map_err(disk(failed))? {
                let Ok(digest) = entry.parse::<Digest>() else {
                    continue;
                };
                if seen.nodes.contains_key(&digest) {
                    continue;
                }
                // In the turn: a push writes the entry first.
                let _turn = self.turn();
                if is_there(&self.disk.manifest(&seen.name, &digest)) {
                    continue;
                }
                let path = folder.join(&entry);
                let size = size_of(&path);
                if remove(&path).map_err(disk(failed))? {
                    let charge = Charge {
                        total: size,
                        repository: size,
                        names: 0,
                    };
                    self.book().release(&seen.name, charge);
                }
                let _ = fs::remove_dir(&folder);
            }
        }
        Ok(())
    }

    fn sweep_repository(&self, name: &RepositoryName, report: &mut Report) -> Result<()> {
        let failed = "collect a repository";
        let _turn = self.turn();
        if self.disk.remove_repository(name).map_err(disk(failed))? {
            sync_parent(&self.disk.repository(name)).map_err(disk(failed))?;
            report.repositories += 1;
        }
        Ok(())
    }

    fn sweep_content(&self, pass: &mut Pass<'_>, report: &mut Report) -> Result<()> {
        let failed = "collect blobs";
        for (digest, size) in self.disk.contents().map_err(disk(failed))? {
            if pass.named.contains(&digest) {
                continue;
            }
            let gone = {
                let _turn = self.turn();
                let mut book = self.book();
                if book.is_touched(&Item::Content(digest.clone())) {
                    continue;
                }
                let gone = self.disk.take_away(&self.disk.blob(&digest));
                if matches!(gone, Ok(Some(_))) {
                    book.release_content(size);
                }
                gone
            };
            // Not synced: what a power cut brings back, the next collection finds again. The file itself goes here,
            // where nobody waits for it.
            if gone.map_err(disk(failed))?.is_some() {
                pass.removed += 1;
                report.blobs += 1;
                report.bytes += size;
            }
        }
        Ok(())
    }
}

impl Seen {
    /// Adds what can be reached from `from`: children, and what has it as subject.
    fn reach(&self, from: impl Iterator<Item = Digest>, reached: &mut HashSet<Digest>) {
        let mut left: Vec<Digest> = from.collect();
        while let Some(digest) = left.pop() {
            if !reached.insert(digest.clone()) {
                continue;
            }
            if let Some(node) = self.nodes.get(&digest) {
                left.extend(node.children.iter().cloned());
            }
            if let Some(list) = self.referrers.get(&digest) {
                left.extend(list.iter().cloned());
            }
        }
    }
}
