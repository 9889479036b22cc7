//! Forwarding one request to one target, over a connection of this worker's own pool.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hutong_ipc::gateway::Protocol;
use tokio::net::TcpStream;

use crate::date;
use crate::pages::Page;
use crate::pipeline::{Exchange, Stop, Worker, bad_gateway};
use crate::table::App;
use crate::target::{Line, Target, connect_to_control};
use crate::upstream::http1::{self, Broken, Connection};
use crate::upstream::http2::{self, Session};

/// Idle connections kept per worker and target, and for how long.
const MAX_IDLE: usize = 64;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// A target on the same machine takes a connection at once or is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const UNANSWERED: &str = "The app ended the connection before it answered.";

/// Why a request was not answered by a target.
pub enum Failure {
    /// The target did not see it; another one may.
    NothingSent,
    Stop(Stop),
}

impl From<Page> for Failure {
    fn from(page: Page) -> Self {
        Failure::Stop(page.into())
    }
}

/// One worker's connections to every target.
#[derive(Default)]
pub struct Upstreams(RefCell<HashMap<String, Rc<Upstream>>>);

pub struct Upstream {
    target: Arc<Target>,
    line: tokio::sync::Mutex<Option<Line>>,
    idle: RefCell<Vec<(Connection, Instant)>>,
    /// Where one connection takes all requests.
    session: RefCell<Option<Session>>,
}

impl Upstreams {
    fn get(&self, target: &Arc<Target>) -> Rc<Upstream> {
        let mut map = self.0.borrow_mut();
        let known = map.get(&target.instance);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.target, target)) {
            return known.clone();
        }
        let upstream = Rc::new(Upstream {
            target: target.clone(),
            line: tokio::sync::Mutex::new(None),
            idle: RefCell::default(),
            session: RefCell::default(),
        });
        map.insert(target.instance.clone(), upstream.clone());
        upstream
    }

    /// Forgets targets that are not served any more, and connections idle for too long. Sockets of an
    /// instance's network keep that network alive, so they must go.
    pub fn sweep(&self, is_served: impl Fn(&str) -> bool) {
        self.0.borrow_mut().retain(|instance, upstream| {
            upstream
                .idle
                .borrow_mut()
                .retain(|(connection, since)| connection.is_open() && since.elapsed() < IDLE_FOR);
            is_served(instance) && !upstream.target.gone.load(Ordering::Relaxed)
        });
    }
}

impl Upstream {
    /// `surely`: one that the app has just closed is told by asking the kernel.
    fn idle(&self, surely: bool) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some((connection, since)) = idle.pop() {
            let open = if surely {
                connection.is_surely_open()
            } else {
                connection.is_open()
            };
            if open && since.elapsed() < IDLE_FOR {
                return Some(connection);
            }
        }
        None
    }

    async fn converse(
        &self,
        reused: Option<Connection>,
        strip: usize,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<(), Broken> {
        let mut connection = match reused {
            Some(connection) => connection,
            None => {
                let stream = self.connect(exchange.worker).await;
                Connection::new(stream.map_err(|_| Broken::Unsent)?)
            }
        };
        if http1::converse(&mut connection, &self.target, strip, exchange).await? {
            self.give_back(connection);
        }
        Ok(())
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
    }

    async fn connect(&self, worker: &Worker) -> std::io::Result<TcpStream> {
        let work = self.connect_stream(worker);
        match tokio::time::timeout(CONNECT_TIMEOUT, work).await {
            Ok(connected) => connected,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// The HTTP/2 connection, and whether it is a fresh one.
    async fn session(&self, worker: &Worker) -> Result<(Session, bool), Broken> {
        let known = self.session.borrow().clone();
        if let Some(session) = known
            && let Ok(session) = session.ready().await
        {
            return Ok((session, false));
        }
        let stream = self.connect(worker).await.map_err(|_| Broken::Unsent)?;
        let session = http2::open(stream).await?;
        *self.session.borrow_mut() = Some(session.clone());
        Ok((session, true))
    }

    /// Tries 127.0.0.1 and ::1, whichever answered last time first.
    async fn connect_stream(&self, worker: &Worker) -> std::io::Result<TcpStream> {
        if self.target.control {
            return connect_to_control(&worker.shared.run_dir).await;
        }
        if let Some(address) = self.target.address {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
        let v6_first = self.target.prefers_v6();
        let first = self.mint(worker, v6_first).await?;
        match self.target.connect(first, v6_first).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                let second = self.mint(worker, !v6_first).await?;
                self.target.connect(second, !v6_first).await
            }
            other => other,
        }
    }

    /// A socket of the instance's network. The line is taken out meanwhile: if we are cut off in the
    /// middle of an answer, it is dropped rather than used out of step.
    async fn mint(&self, worker: &Worker, v6: bool) -> std::io::Result<std::os::fd::OwnedFd> {
        let mut place = self.line.lock().await;
        let mut line = match place.take() {
            Some(line) => line,
            None => Line::open(&worker.shared.run_dir, &self.target.instance).await?,
        };
        let socket = line.mint(v6).await?;
        *place = Some(line);
        Ok(socket)
    }
}

/// Sends the request to the target and its answer back to the visitor.
pub async fn forward(
    app: &App,
    strip: usize,
    target: &Arc<Target>,
    exchange: &mut Exchange<'_, '_>,
) -> Result<(), Failure> {
    let upstream = exchange.worker.upstreams.get(target);
    let mut fresh = false;
    // A connection that was used before may have just been closed by the app: then once more, on a fresh one.
    loop {
        let was_reused;
        let outcome = match target.protocol {
            Protocol::H2c => {
                let session = upstream.session(exchange.worker).await;
                let (session, new) = session.map_err(|_| Failure::NothingSent)?;
                was_reused = !new && !fresh;
                http2::converse(session, strip, exchange).await
            }
            _ => {
                let reused = (!fresh).then(|| upstream.idle(!exchange.is_replayable()));
                let reused = reused.flatten();
                was_reused = reused.is_some();
                upstream.converse(reused, strip, exchange).await
            }
        };
        fresh = true;
        match outcome {
            Ok(()) => return Ok(()),
            Err(Broken::Unsent) if exchange.upload.is_begun() => {
                // What was taken of its body is gone.
                return Err(bad_gateway("The app did not take the request.").into());
            }
            Err(Broken::Unsent) if was_reused => {}
            // Not out of the budget: that the app closed it and we did not know is nobody's failure.
            Err(Broken::Unanswered) if was_reused && exchange.is_replayable() => {}
            Err(Broken::Unsent) => return Err(Failure::NothingSent),
            Err(Broken::Unanswered) if exchange.is_replayable() => {
                // It died while it had our request: another target may do better. Not a third one: the
                // request itself may be what kills them.
                exchange.deaths += 1;
                if exchange.deaths > 1 {
                    let detail = "Two instances of the app ended while they had this request.";
                    return Err(bad_gateway(detail).into());
                }
                if !app.retries.may(date::second()) {
                    return Err(bad_gateway(UNANSWERED).into());
                }
                return Err(Failure::NothingSent);
            }
            Err(Broken::Unanswered) => return Err(bad_gateway(UNANSWERED).into()),
            Err(Broken::TooSlow) => {
                return Err(Page::new(504, "The app took too long to answer.").into());
            }
            Err(Broken::Malformed(why)) => {
                tracing::debug!(app = app.name, "the app's answer: {why}");
                let detail = "The app's answer cannot be understood.";
                return Err(bad_gateway(detail).into());
            }
            Err(Broken::Stop(stop)) => return Err(Failure::Stop(stop)),
        }
    }
}
