//! The shim's life: one poll loop over the listening socket, its connections, the app's output and the
//! line to init. Nothing here blocks, and nothing grows.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant, SystemTime};

use hutong_ipc::channel;
use hutong_ipc::shim::{Answer, Ended, Exit, Request, Status};
use hutong_ipc::spool::{Kind, Writer};

use crate::init::{self, News, Order};
use crate::{net, sys};

/// Connections at once: workers of two gateways, control, and a few execs.
const MAX_CONNECTIONS: usize = 40;
/// The longest request, in bytes.
const MAX_REQUEST: usize = 256 << 10;
/// Output taken from the app, in bytes a second; behind that the app waits.
const OUTPUT_RATE: f64 = 16e6;
const CHUNK: usize = 64 << 10;
/// What one read of output costs of the allowance at least, in bytes.
const LEAST_CHARGE: usize = 8 << 10;

pub struct Instance {
    pub init: i32,
    pub line: UnixStream,
    pub listener: UnixListener,
    pub outputs: [Option<OwnedFd>; 2],
    pub spool: Writer,
    /// Where the app calls other apps.
    pub links: Vec<(String, std::net::TcpListener)>,
    pub peers: Vec<u32>,
    pub socket_peers: Vec<u32>,
    /// What asks the program to end.
    pub stop_signal: i32,
}

struct Connection {
    socket: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    exec: Option<u32>,
    /// It may ask for sockets, minted or of links, and nothing else.
    sockets_only: bool,
}

pub fn run(instance: Instance) -> ! {
    let _ = instance.listener.set_nonblocking(true);
    let mut shim = Shim {
        instance,
        connections: Vec::new(),
        kill_at: None,
        told: false,
        next_exec: 0,
        allowance: OUTPUT_RATE,
        refilled: Instant::now(),
        buffer: vec![0; CHUNK],
    };
    loop {
        shim.turn();
    }
}

struct Shim {
    instance: Instance,
    connections: Vec<Connection>,
    /// When SIGTERM was sent and SIGKILL is due.
    kill_at: Option<Instant>,
    /// It was asked to stop.
    told: bool,
    next_exec: u32,
    /// Bytes of output that may be read now.
    allowance: f64,
    refilled: Instant,
    buffer: Vec<u8>,
}

impl Shim {
    fn turn(&mut self) {
        self.refill();
        let paused = self.allowance < CHUNK as f64;
        let mut fds = vec![
            (self.instance.line.as_raw_fd(), sys::READABLE),
            (self.instance.listener.as_raw_fd(), sys::READABLE),
        ];
        for output in &self.instance.outputs {
            let fd = output.as_ref().filter(|_| !paused);
            fds.push((fd.map_or(-1, |fd| fd.as_raw_fd()), sys::READABLE));
        }
        let readers = self.connections.iter().map(|c| c.socket.as_raw_fd());
        fds.extend(readers.map(|fd| (fd, sys::READABLE)));
        let mut timeout = self.kill_at.map_or(-1, |at| {
            at.saturating_duration_since(Instant::now()).as_millis() as i32 + 1
        });
        if paused {
            timeout = if timeout < 0 { 20 } else { timeout.min(20) };
        }
        let ready = sys::poll(&fds, timeout);
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            // Not a second time: the end of the program is awaited without a clock.
            self.kill_at = None;
            let _ = init::tell(&self.instance.line, &Order::KillAll);
        }
        for index in 0..2 {
            if ready[2 + index] != 0 {
                self.take_output(index);
            }
        }
        if ready[0] != 0 {
            self.hear_init();
        }
        // From the back, so that removing one does not move those still to visit.
        for index in (0..self.connections.len()).rev() {
            if ready[4 + index] != 0 && !self.serve(index) {
                let gone = self.connections.swap_remove(index);
                if let Some(id) = gone.exec {
                    let _ = init::tell(&self.instance.line, &Order::KillGuest { id });
                }
            }
        }
        if ready[1] != 0 {
            self.accept();
        }
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let passed = now.duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        self.allowance = (self.allowance + passed * OUTPUT_RATE).min(OUTPUT_RATE);
    }

    /// Reads what an output has, once; false when there is nothing more now.
    fn take_output(&mut self, index: usize) -> bool {
        let Some(output) = &self.instance.outputs[index] else {
            return false;
        };
        match sys::read(output, &mut self.buffer) {
            Ok(0) => {
                self.instance.outputs[index] = None;
                false
            }
            Ok(count) => {
                let kind = [Kind::Stdout, Kind::Stderr][index];
                self.instance
                    .spool
                    .write(kind, now_micros(), &self.buffer[..count]);
                // Single bytes cost as much work as pages: an app must not get processor time through us.
                self.allowance -= count.max(LEAST_CHARGE) as f64;
                true
            }
            Err(_) => false,
        }
    }

    fn hear_init(&mut self) {
        match channel::receive::<News>(&self.instance.line) {
            Ok(Some((News::Ended(exit), _))) => self.end(exit),
            Ok(Some((News::ExecStarted { id }, _))) => self.answer_exec(id, &Answer::ExecStarted),
            Ok(Some((News::ExecEnded { id, exit }, _))) => {
                self.answer_exec(id, &Answer::ExecEnded(exit));
            }
            Ok(Some(_)) => {}
            // Init was killed from outside: the kernel has killed the rest.
            Ok(None) | Err(_) => self.end(Exit::Signal(libc::SIGKILL)),
        }
    }

    /// The program is over: keep its last words, say how it ended, go.
    fn end(&mut self, exit: Exit) -> ! {
        for index in 0..2 {
            // Bounded: something else may hold the pipe open and go on writing.
            let mut rounds = 0;
            while rounds < 64 && self.take_output(index) {
                rounds += 1;
            }
        }
        let told = self.told;
        let record = serde_json::to_vec(&Ended { exit, told }).unwrap_or_default();
        hutong_ipc::fail::point("program ended");
        self.instance.spool.write(Kind::Exit, now_micros(), &record);
        hutong_ipc::fail::point("end written");
        std::process::exit(0);
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.instance.listener.accept() {
            let Ok((_, uid)) = channel::peer(&socket) else {
                continue;
            };
            let trusted = self.instance.peers.contains(&uid);
            let allowed = trusted || self.instance.socket_peers.contains(&uid);
            if !allowed || self.connections.len() >= MAX_CONNECTIONS {
                continue;
            }
            if socket.set_nonblocking(true).is_ok() {
                self.connections.push(Connection {
                    socket,
                    input: Vec::new(),
                    fds: Vec::new(),
                    exec: None,
                    sockets_only: !trusted,
                });
            }
        }
    }

    /// Reads from a connection and answers whole requests; false when it is over.
    fn serve(&mut self, index: usize) -> bool {
        let connection = &mut self.connections[index];
        let mut chunk = [0; 4096];
        loop {
            let received =
                channel::receive_some(connection.socket.as_fd(), &mut chunk, &mut connection.fds);
            match received {
                Ok(0) => return false,
                Ok(count) => connection.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
            if connection.input.len() > MAX_REQUEST || connection.fds.len() > channel::MAX_FDS {
                return false;
            }
        }
        while let Some(request) = match self.next_request(index) {
            Ok(next) => next,
            Err(_) => return false,
        } {
            if !self.answer(index, request) {
                return false;
            }
        }
        true
    }

    fn next_request(&mut self, index: usize) -> io::Result<Option<Request>> {
        let input = &mut self.connections[index].input;
        let Some(header) = input.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = channel::frame_length(*header)?;
        if input.len() < 4 + length {
            return Ok(None);
        }
        let request = channel::decode(&input[4..4 + length])?;
        input.drain(..4 + length);
        Ok(Some(request))
    }

    fn answer(&mut self, index: usize, request: Request) -> bool {
        let minting = matches!(request, Request::Sockets { .. } | Request::Links);
        if self.connections[index].sockets_only && !minting {
            return false;
        }
        match request {
            Request::Sockets { v4, v6 } => {
                let sockets = mint(v4, v6);
                match sockets {
                    Ok(sockets) => self.reply(index, &Answer::Sockets, &sockets),
                    Err(error) => self.reply(index, &Answer::Refused(error.to_string()), &[]),
                }
            }
            Request::Links => {
                let links = &self.instance.links;
                let names = links.iter().map(|(name, _)| name.clone()).collect();
                let sockets: io::Result<Vec<OwnedFd>> = links
                    .iter()
                    .map(|(_, link)| link.as_fd().try_clone_to_owned())
                    .collect();
                match sockets {
                    Ok(sockets) => self.reply(index, &Answer::Links(names), &sockets),
                    Err(error) => self.reply(index, &Answer::Refused(error.to_string()), &[]),
                }
            }
            Request::Status => {
                let status = Status {
                    init: self.instance.init,
                    stopping: self.kill_at.is_some(),
                    listening: net::listening(),
                };
                self.reply(index, &Answer::Status(status), &[])
            }
            Request::Stop { timeout_ms } => {
                hutong_ipc::fail::point("told to stop");
                self.told = true;
                let at = Instant::now() + Duration::from_millis(timeout_ms.min(3_600_000));
                self.kill_at = Some(self.kill_at.map_or(at, |already| already.min(at)));
                let order = Order::Signal(self.instance.stop_signal);
                let _ = init::tell(&self.instance.line, &order);
                self.reply(index, &Answer::Stopping, &[])
            }
            // One program for each connection: its end is the program's.
            Request::Exec(_) if self.connections[index].exec.is_some() => false,
            Request::Exec(exec) => {
                let fds = std::mem::take(&mut self.connections[index].fds);
                self.next_exec += 1;
                self.connections[index].exec = Some(self.next_exec);
                let order = Order::Exec {
                    id: self.next_exec,
                    exec,
                };
                let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
                channel::send(&self.instance.line, &order, &borrowed).is_ok()
            }
        }
    }

    /// A peer that does not read its answers is cut off.
    fn reply(&mut self, index: usize, answer: &Answer, fds: &[OwnedFd]) -> bool {
        let Ok(frame) = channel::encode(answer) else {
            return false;
        };
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let socket = self.connections[index].socket.as_fd();
        channel::send_some(socket, &frame, &borrowed).is_ok_and(|sent| sent == frame.len())
    }

    fn answer_exec(&mut self, id: u32, answer: &Answer) {
        let index = self.connections.iter().position(|c| c.exec == Some(id));
        if let Some(index) = index
            && self.reply(index, answer, &[])
        {
            return;
        }
        if let Some(index) = index {
            self.connections.swap_remove(index);
        }
        // Nobody waits for it any more.
        let _ = init::tell(&self.instance.line, &Order::KillGuest { id });
    }
}

/// Unconnected sockets of this network namespace, which does not block.
fn mint(v4: u8, v6: u8) -> io::Result<Vec<OwnedFd>> {
    let families = [(libc::AF_INET, v4), (libc::AF_INET6, v6)];
    let mut sockets = Vec::new();
    for (family, count) in families {
        for _ in 0..count.min(channel::MAX_FDS as u8 / 2) {
            sockets.push(sys::socket(
                family,
                libc::SOCK_STREAM | libc::SOCK_NONBLOCK,
            )?);
        }
    }
    Ok(sockets)
}

fn now_micros() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_micros() as u64)
}
