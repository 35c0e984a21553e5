//! The log on disk: segments that are written once, in order, and given up as a whole.
//!
//! ```text
//! VERSION       a newer one is left alone, and there is no second tier
//! LOCK  key     who has the folder; the data keys, wrapped
//! seg-<n>.log   records (see `record`), one after the other
//! ```
//! Everything here blocks.
//!
//! - **The files never take more than `max`**, copies included: before a record is appended that would not fit, the
//!   oldest segment is given up. What was used of late in it, up to half of a segment, is carried over to the end; a
//!   file that is deleted gives its space back at once.
//! - Segments are given up in the order of their age, so a deletion outlives every record that it is about.
//! - A record that cannot be read, for whatever reason, is a miss. Behind a header that makes no sense the rest of its
//!   segment is not read; the other segments are.
//! - A write that fails is cut off again and ends the segment; nothing is ever appended behind bytes that are unknown.
//!   A start goes on in the last segment when it could be read to its end.

use super::index::{Index, Slot};
use super::record::{HEADER, Head, Header, Id, Kind, MAX_HEAD, Place};
use crate::ids::PartitionId;
use crate::store::{DataLock, Io, Keys, OpenError, Seals, Step, fs};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The version of the folder.
const VERSION: u32 = 1;
const LEAST_SEGMENT: u64 = 256 * 1024;
const LARGEST_SEGMENT: u64 = 16 << 20;
/// A log has about so many segments.
const SEGMENTS: u64 = 32;
/// And about so many at most.
const MOST_SEGMENTS: u64 = 256;
const HEAD_TREE: u8 = b'h';
const BODY_TREE: u8 = b'b';

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// Written by a newer version. It is left alone.
    #[error("{} is of version {found}, and this one knows {VERSION}: it is left alone", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The log, open.
pub(crate) struct Log {
    dir: PathBuf,
    _lock: DataLock,
    seals: Arc<Seals>,
    io: Arc<dyn Io>,
    max: u64,
    segments: BTreeMap<u64, Segment>,
    /// The one that is written.
    current: Option<u64>,
    next: u64,
    table: Arc<Mutex<Table>>,
    bytes: u64,
    is_dirty: bool,
}

struct Segment {
    /// `None`: it cannot be opened. It still takes room, and goes when its turn comes.
    file: Option<Arc<File>>,
    bytes: u64,
}

/// What readers need. Held for moments only: never while the disk is waited for.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) index: Index,
    files: BTreeMap<u64, Arc<File>>,
}

/// A copy as it is to be read, when no lock is held any more.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) id: Id,
    pub(crate) slot: Slot,
    record: Arc<File>,
    body: Arc<File>,
    seals: Arc<Seals>,
}

/// A copy to be written.
pub(crate) struct Write<'a> {
    pub(crate) id: Id,
    pub(crate) partition: PartitionId,
    pub(crate) at: i64,
    pub(crate) head: Head,
    /// `None`: a renewal of the copy that is there.
    pub(crate) body: Option<&'a [u8]>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Yes,
    /// It is larger than what such a log may hold.
    TooLarge,
    /// The copy to renew is gone.
    Gone,
}

/// Gives back the space of a log that cannot be opened, the oldest files first, until so many bytes are free. Gives the
/// bytes given up. One that another process has, or a newer version wrote, is left alone. Blocks.
pub(crate) fn give_back(dir: &Path, io: &dyn Io, wanted: u64) -> Result<u64, LogError> {
    if !std::fs::exists(dir)? || io.free_bytes(dir)? >= wanted {
        return Ok(0);
    }
    refuse_newer(dir)?;
    let _lock = DataLock::acquire(dir, Duration::ZERO)?;
    let mut given = 0;
    for number in numbers(dir)? {
        if io.free_bytes(dir)? >= wanted {
            break;
        }
        let path = path(dir, number);
        let bytes = std::fs::symlink_metadata(&path)?.len();
        std::fs::remove_file(&path)?;
        given += bytes;
    }
    Ok(given)
}

fn refuse_newer(dir: &Path) -> Result<(), LogError> {
    match std::fs::read_to_string(dir.join("VERSION")) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found > VERSION => Err(LogError::Newer { path: dir.to_owned(), found }),
            _ => Ok(()),
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The segments, in their order.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("seg-")?.strip_suffix(".log"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("seg-{number:010}.log"))
}

// === impl Log ===

impl Log {
    /// Opens the log in `dir`, made where there is none.
    pub(crate) fn open(dir: &Path, keys: &Keys, max: u64, io: Arc<dyn Io>) -> Result<Self, LogError> {
        refuse_newer(dir)?;
        let lock = DataLock::acquire(dir, Duration::ZERO)?;
        fs::durable_write_file(&dir.join("VERSION"), format!("{VERSION}\n").as_bytes())?;
        let seals = Seals::open(dir, keys)?;
        let mut log = Self {
            dir: dir.to_owned(),
            _lock: lock,
            seals: Arc::new(seals),
            io,
            max,
            segments: BTreeMap::new(),
            current: None,
            next: 1,
            table: Arc::default(),
            bytes: 0,
            is_dirty: false,
        };
        let surplus = log.find()?;
        log.table().index.order_by_time();
        if let Err(error) = log.delete_unknown(surplus) {
            tracing::warn!(%error, "copies that are too many stay in the cache on disk until their files go");
        }
        // More than there may be now: the setting was lowered.
        if let Err(error) = log.shrink(log.max) {
            tracing::warn!(%error, "the cache on disk is larger than it may be");
        }
        Ok(log)
    }

    /// Reads the headers of all segments, in their order. Gives those that are there and not known, because they are
    /// too many.
    fn find(&mut self) -> io::Result<HashMap<Id, PartitionId>> {
        let mut surplus = HashMap::new();
        for number in numbers(&self.dir)? {
            self.current = None;
            self.next = self.next.max(number.saturating_add(1));
            let path = self.path(number);
            match File::options().read(true).write(true).open(&path).and_then(|file| {
                let bytes = file.metadata()?.len();
                Ok((file, bytes))
            }) {
                Ok((file, 0)) => {
                    drop(file);
                    let _ = std::fs::remove_file(&path);
                }
                Ok((file, bytes)) => {
                    match self.read_headers(number, &file, bytes, &mut surplus) {
                        // What comes goes on here, if it is the last one: or each start would begin a file.
                        Ok(end) => self.current = (end == bytes).then_some(number),
                        Err(error) => {
                            tracing::warn!(path = %path.display(), %error, "a part of the cache on disk cannot be read");
                        }
                    }
                    let file = Arc::new(file);
                    self.bytes += bytes;
                    self.table().files.insert(number, file.clone());
                    self.segments.insert(number, Segment { file: Some(file), bytes });
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a part of the cache on disk cannot be opened");
                    let bytes = std::fs::symlink_metadata(&path).map_or(0, |found| found.len());
                    self.bytes += bytes;
                    self.segments.insert(number, Segment { file: None, bytes });
                }
            }
        }
        Ok(surplus)
    }

    /// Gives where the last record that makes sense ends.
    fn read_headers(
        &mut self,
        number: u64,
        file: &File,
        bytes: u64,
        surplus: &mut HashMap<Id, PartitionId>,
    ) -> io::Result<u64> {
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut offset = 0;
        let mut buffer = [0; HEADER];
        while offset + HEADER as u64 <= bytes {
            reader.read_exact(&mut buffer)?;
            let Some(header) = Header::decode(&buffer).filter(|header| offset + header.whole() <= bytes)
            else {
                tracing::warn!(
                    path = %self.path(number).display(), offset, bytes,
                    "a part of the cache on disk is damaged; what is behind it there is lost"
                );
                return Ok(offset);
            };
            let mut table = self.table();
            table.index.apply(&header, number, offset);
            if !surplus.is_empty() && header.kind != Kind::Renew {
                surplus.remove(&header.id);
            }
            for id in table.index.surplus() {
                surplus.extend(table.index.remove(&id).map(|slot| (id, slot.partition)));
            }
            drop(table);
            offset += header.whole();
            reader.seek_relative((header.whole() - HEADER as u64).cast_signed())?;
        }
        Ok(offset)
    }

    /// Bytes of all files.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.bytes
    }

    /// What readers need.
    pub(crate) fn shared(&self) -> (Arc<Mutex<Table>>, Arc<Seals>) {
        (self.table.clone(), self.seals.clone())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: &Id) -> Option<Slot> {
        self.table().index.get(id).copied()
    }

    /// Appends a copy. It survives a crash of the process from now on, and a power cut from [`Log::sync`] on.
    pub(crate) fn write(&mut self, write: &Write<'_>) -> io::Result<Written> {
        let stamp = match write.body {
            Some(_) => fastrand::u64(..),
            None => match self.slot(&write.id) {
                Some(slot) => slot.stamp,
                None => return Ok(Written::Gone),
            },
        };
        let Some(bytes) = self.record(write, stamp) else { return Ok(Written::TooLarge) };
        if bytes.len() as u64 > self.max / 8 {
            return Ok(Written::TooLarge);
        }
        self.make_room(bytes.len() as u64)?;
        // What was renewed may have been given up for the room.
        if write.body.is_none() && self.slot(&write.id).is_none_or(|slot| slot.stamp != stamp) {
            return Ok(Written::Gone);
        }
        self.append(&bytes)?;
        let surplus = self.table().index.surplus();
        for id in surplus {
            // On disk too: what is not known cannot be purged.
            self.delete(&id)?;
        }
        Ok(Written::Yes)
    }

    /// Deletes a copy, so that no start finds it again. Tells whether it was there.
    pub(crate) fn delete(&mut self, id: &Id) -> io::Result<bool> {
        let Some(slot) = self.slot(id) else { return Ok(false) };
        self.append_deletion(*id, slot.partition, slot.stamp)?;
        Ok(true)
    }

    fn append_deletion(&mut self, id: Id, partition: PartitionId, stamp: u64) -> io::Result<()> {
        let header = Header { kind: Kind::Delete, id, partition, stamp, at: 0, head: 0, body: 0 };
        self.make_room(HEADER as u64)?;
        self.append(&header.encode())
    }

    /// Deletes copies that are on disk and not in the index.
    fn delete_unknown(&mut self, copies: HashMap<Id, PartitionId>) -> io::Result<()> {
        for (id, partition) in copies {
            self.append_deletion(id, partition, 0)?;
        }
        self.sync()
    }

    /// Makes what was written last over a power cut.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if !self.is_dirty {
            return Ok(());
        }
        let segment = self.current.and_then(|number| self.segments.get(&number));
        if let Some(file) = segment.and_then(|segment| segment.file.as_ref()) {
            self.io.at(Step::Sync, &self.dir)?;
            file.sync_data()?;
        }
        self.is_dirty = false;
        Ok(())
    }

    /// Gives up the oldest segments, with all that is in them, until so many bytes are left at most.
    pub(crate) fn shrink(&mut self, limit: u64) -> io::Result<()> {
        while self.bytes > limit
            && let Some(number) = self.segments.keys().next().copied()
        {
            self.give_up(number)?;
        }
        Ok(())
    }

    /// Gives up all of it, over a power cut too. What cannot be deleted is the error; all else is gone.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        let numbers: Vec<u64> = self.segments.keys().copied().collect();
        let mut result = Ok(());
        for number in numbers {
            result = result.and(self.give_up(number));
        }
        if std::fs::exists(&self.dir)? { result.and(fs::sync_dir(&self.dir)) } else { result }
    }

    /// Bytes free on the volume. A folder that somebody removed is made again.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        match self.io.free_bytes(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.dir)?;
                self.io.free_bytes(&self.dir)
            }
            answer => answer,
        }
    }

    // --- records

    fn record(&self, write: &Write<'_>, stamp: u64) -> Option<Vec<u8>> {
        let head = write.head.encode();
        let header = Header {
            kind: if write.body.is_some() { Kind::Put } else { Kind::Renew },
            id: write.id,
            partition: write.partition,
            stamp,
            at: write.at,
            head: u32::try_from(head.len() + Seals::OVERHEAD).ok()?,
            body: match write.body {
                Some(body) => u32::try_from(body.len() + Seals::OVERHEAD).ok()?,
                None => 0,
            },
        };
        if header.head as usize > MAX_HEAD {
            return None;
        }
        let encoded = header.encode();
        let mut bytes = Vec::with_capacity(header.whole() as usize);
        bytes.extend_from_slice(&encoded);
        bytes.extend_from_slice(&self.seals.seal(HEAD_TREE, &encoded, &head)?);
        if let Some(body) = write.body {
            bytes.extend_from_slice(&self.seals.seal(BODY_TREE, &header.body_key(), body)?);
        }
        Some(bytes)
    }

    /// Appends a record for which there is room.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_full = |segment: &Segment| segment.bytes >= self.segment_size();
        if self.current.and_then(|number| self.segments.get(&number)).is_none_or(is_full) {
            self.begin_segment()?;
        }
        let number = self.current.expect("it was begun just now");
        let segment = self.segments.get_mut(&number).expect("it is among them");
        let file = segment.file.as_ref().expect("what is written is open");
        let offset = segment.bytes;
        let written = self.io.at(Step::Write, &self.dir).and_then(|()| file.write_all_at(bytes, offset));
        if let Err(error) = written {
            // Nothing goes behind bytes that are unknown.
            let _ = file.set_len(offset);
            self.current = None;
            return Err(error);
        }
        segment.bytes += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        self.is_dirty = true;
        let header = bytes.first_chunk().and_then(Header::decode).expect("a record begins with its header");
        self.table().index.apply(&header, number, offset);
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        self.sync()?;
        let number = self.next;
        std::fs::create_dir_all(&self.dir)?;
        let file = File::options().read(true).write(true).create_new(true).open(self.path(number))?;
        fs::sync_dir(&self.dir)?;
        self.next += 1;
        let file = Arc::new(file);
        self.table().files.insert(number, file.clone());
        self.segments.insert(number, Segment { file: Some(file), bytes: 0 });
        self.current = Some(number);
        Ok(())
    }

    // --- room

    fn segment_size(&self) -> u64 {
        // One open file each: so a large log has large ones, and not many.
        (self.max / SEGMENTS).clamp(LEAST_SEGMENT, LARGEST_SEGMENT).max(self.max / MOST_SEGMENTS)
    }

    /// Room for so many more bytes. What is carried over fits in what must be free besides.
    fn make_room(&mut self, needed: u64) -> io::Result<()> {
        let reserve = self.segment_size() / 2;
        while self.bytes + needed + reserve > self.max
            && let Some(number) = self.segments.keys().next().copied()
        {
            self.carry_over(number, reserve)?;
        }
        Ok(())
    }

    fn carry_over(&mut self, number: u64, limit: u64) -> io::Result<()> {
        if self.current == Some(number) {
            // The only one: nothing can be carried to itself.
            return self.give_up(number);
        }
        let kept = self.table().index.carried(number, limit);
        for id in &kept {
            let handle = self.table().handle(*id, &self.seals);
            // What cannot be read goes with the segment.
            if let Some(bytes) = handle.and_then(|handle| handle.moved().ok().flatten()) {
                self.append(&bytes)?;
            }
        }
        if !kept.is_empty() {
            // Before the old place is gone.
            self.sync()?;
        }
        self.give_up(number)
    }

    /// Nothing of a segment is served any more. With an error its file is still there, and still counts.
    fn give_up(&mut self, number: u64) -> io::Result<()> {
        {
            let mut table = self.table();
            table.index.forget_segment(number);
            table.files.remove(&number);
        }
        if self.current == Some(number) {
            self.current = None;
            self.is_dirty = false;
        }
        let path = self.path(number);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // Its content at least.
            let file = self.segments.get(&number).and_then(|segment| segment.file.as_ref());
            let emptied = file.map(|file| file.set_len(0).and_then(|()| file.sync_data()));
            if !matches!(emptied, Some(Ok(()))) {
                tracing::warn!(path = %path.display(), %error, "a part of the cache on disk stays");
                return Err(error);
            }
        }
        if let Some(segment) = self.segments.remove(&number) {
            self.bytes -= segment.bytes;
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        path(&self.dir, number)
    }
}

// === impl Table ===

impl Table {
    /// The variants of a key, to be read.
    pub(crate) fn handles(&mut self, key: &[u8; 32], seals: &Arc<Seals>) -> Vec<Handle> {
        let found = self.index.variants(key);
        found.into_iter().filter_map(|(id, _)| self.handle(id, seals)).collect()
    }

    /// A copy, to be read.
    pub(crate) fn handle(&self, id: Id, seals: &Arc<Seals>) -> Option<Handle> {
        let slot = *self.index.get(&id)?;
        Some(Handle {
            id,
            slot,
            record: self.files.get(&slot.record.segment)?.clone(),
            body: self.files.get(&slot.body.segment)?.clone(),
            seals: seals.clone(),
        })
    }
}

// === impl Handle ===

impl Handle {
    /// The head; `None` when it cannot be read, for whatever reason.
    pub(crate) fn head(&self) -> Option<Head> {
        let (header, sealed) = self.sealed_head().ok()??;
        Head::decode(&self.seals.unseal(HEAD_TREE, &header.encode(), &sealed)?)
    }

    /// The body; `None` when it cannot be read, for whatever reason.
    pub(crate) fn body(&self) -> Option<Vec<u8>> {
        let (header, _) = self.sealed_head().ok()??;
        let sealed = read(&self.body, self.slot.body).ok()?;
        self.seals.unseal(BODY_TREE, &header.body_key(), &sealed)
    }

    fn sealed_head(&self) -> io::Result<Option<(Header, Vec<u8>)>> {
        let place = Place { length: HEADER as u32 + self.slot.head, ..self.slot.record };
        let mut bytes = read(&self.record, place)?;
        let sealed = bytes.split_off(HEADER);
        let header = bytes.first_chunk().and_then(Header::decode);
        Ok(header
            .filter(|header| header.id == self.id && header.stamp == self.slot.stamp)
            .map(|header| (header, sealed)))
    }

    /// The whole copy as one record, for another place: the head sealed anew, since it names its header.
    fn moved(&self) -> io::Result<Option<Vec<u8>>> {
        let Some((header, sealed)) = self.sealed_head()? else { return Ok(None) };
        let moved = Header { kind: Kind::Put, body: self.slot.body.length, ..header };
        let head = self.seals.unseal(HEAD_TREE, &header.encode(), &sealed);
        let Some(head) = head.and_then(|head| self.seals.seal(HEAD_TREE, &moved.encode(), &head)) else {
            return Ok(None);
        };
        let mut bytes = Vec::with_capacity(moved.whole() as usize);
        bytes.extend_from_slice(&moved.encode());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&read(&self.body, self.slot.body)?);
        Ok(Some(bytes))
    }
}

fn read(file: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.length as usize];
    file.read_exact_at(&mut bytes, place.offset)?;
    Ok(bytes)
}
