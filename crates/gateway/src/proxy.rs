//! Forwarding one request to one target, over a connection of this worker's own pool.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;

use crate::pages::Page;
use crate::pipeline::{Answer, Worker, bad_gateway, from_app};
use crate::sanity::Wanted;
use crate::table::App;
use crate::target::{InFlight, Line, Target};
use crate::{headers, upgrade};

type Outgoing = Either<Incoming, Empty<Bytes>>;

/// Idle connections kept per worker and target, and for how long.
const MAX_IDLE: usize = 64;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// A target on the same machine takes a connection at once or is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One request until it is answered.
pub struct Job {
    parts: Parts,
    body: Option<Outgoing>,
    /// It may be sent again: without a body, and safe (RFC 9110 §9.2.1).
    replayable: bool,
    upgrade: Option<OnUpgrade>,
    path: String,
    visitor: IpAddr,
    /// Instances that ended while they had it.
    deaths: u32,
}

impl Job {
    pub fn new(mut request: Request<Incoming>, wanted: &Wanted, visitor: IpAddr) -> Self {
        let upgrade =
            headers::wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let empty = body.is_end_stream();
        let safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        Job {
            parts,
            body: Some(if empty {
                Either::Right(Empty::new())
            } else {
                Either::Left(body)
            }),
            replayable: empty && safe && upgrade.is_none(),
            upgrade,
            path: wanted.path.clone(),
            visitor,
            deaths: 0,
        }
    }

    pub fn head(&self) -> &Parts {
        &self.parts
    }

    /// The request as the app gets it; its body leaves this job.
    fn outgoing(&mut self, strip: usize) -> Option<Request<Outgoing>> {
        let body = self.body.take()?;
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = self.target(strip)?;
        let (prefix, _) = self.path.split_at(strip);
        let mut map = self.parts.headers.clone();
        headers::strip_hop_by_hop(&mut map, self.upgrade.is_some());
        headers::add_forwarded(&mut map, self.visitor, prefix);
        // We answer 100-continue ourselves, when the app begins to read.
        map.remove(EXPECT);
        *request.headers_mut() = map;
        Some(request)
    }

    fn target(&self, strip: usize) -> Option<Uri> {
        let path = &self.path[strip..];
        let slash = if path.starts_with('/') { "" } else { "/" };
        let query = self.parts.uri.query();
        let (mark, query) = query.map_or(("", ""), |query| ("?", query));
        format!("{slash}{path}{mark}{query}").parse().ok()
    }
}

/// Why a request was not answered by a target.
pub enum Failure {
    /// The target did not see it; another one may.
    NothingSent,
    Final(Page),
}

/// One worker's connections to every target.
#[derive(Default)]
pub struct Upstreams(RefCell<HashMap<String, Rc<Upstream>>>);

pub struct Upstream {
    target: Arc<Target>,
    line: tokio::sync::Mutex<Option<Line>>,
    idle: RefCell<Vec<(SendRequest<Outgoing>, Instant)>>,
}

impl Upstreams {
    fn get(&self, target: &Arc<Target>) -> Rc<Upstream> {
        let mut map = self.0.borrow_mut();
        if let Some(known) = map.get(&target.instance) {
            return known.clone();
        }
        let upstream = Rc::new(Upstream {
            target: target.clone(),
            line: tokio::sync::Mutex::new(None),
            idle: RefCell::default(),
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
                .retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_FOR);
            is_served(instance) && !upstream.target.gone.load(Ordering::Relaxed)
        });
    }
}

impl Upstream {
    fn idle(&self) -> Option<SendRequest<Outgoing>> {
        let mut idle = self.idle.borrow_mut();
        while let Some((sender, since)) = idle.pop() {
            // One that is not ready still waits for a visitor's body: it may do so for ever.
            if sender.is_ready() && since.elapsed() < IDLE_FOR {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self, worker: &Worker) -> std::io::Result<SendRequest<Outgoing>> {
        let work = self.connect_stream(worker);
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, work).await {
            Ok(connected) => connected?,
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(256 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::task::spawn_local(async move {
            // Its end is seen by whoever holds the sender.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }
}

impl Upstream {
    /// Tries 127.0.0.1 and ::1, whichever answered last time first.
    async fn connect_stream(&self, worker: &Worker) -> std::io::Result<tokio::net::TcpStream> {
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

/// A connection on its way back to the pool.
pub struct Reuse {
    upstream: Rc<Upstream>,
    sender: SendRequest<Outgoing>,
}

impl Reuse {
    pub fn give_back(self) {
        let mut idle = self.upstream.idle.borrow_mut();
        if idle.len() < MAX_IDLE && !self.sender.is_closed() {
            idle.push((self.sender, Instant::now()));
        }
    }
}

/// Sends the job to the target and answers with its response's head; the body streams on.
pub async fn forward(
    worker: &Rc<Worker>,
    app: &App,
    strip: usize,
    in_flight: InFlight,
    job: &mut Job,
) -> Result<Answer, Failure> {
    let upstream = worker.upstreams.get(&in_flight.target);
    let mut reused = upstream.idle();
    // A pooled connection may have just been closed by the app: then once more, on a fresh one.
    loop {
        let was_reused = reused.is_some();
        let mut sender = match reused.take() {
            Some(sender) => sender,
            None => upstream
                .connect(worker)
                .await
                .map_err(|_| Failure::NothingSent)?,
        };
        if sender.ready().await.is_err() {
            if was_reused {
                continue;
            }
            return Err(Failure::NothingSent);
        }
        let Some(request) = job.outgoing(strip) else {
            return Err(Failure::Final(bad_gateway(
                "The request cannot be sent again.",
            )));
        };
        let sending = sender.try_send_request(request);
        match tokio::time::timeout(app.response_timeout, sending).await {
            Err(_) => {
                return Err(Failure::Final(Page::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "The app took too long to answer.",
                )));
            }
            Ok(Ok(response)) => return Ok(answer(upstream, sender, in_flight, job, response)),
            Ok(Err(mut error)) => {
                if let Some(unsent) = error.take_message() {
                    job.body = Some(unsent.into_body());
                } else if job.replayable {
                    job.body = Some(Either::Right(Empty::new()));
                    if !was_reused {
                        // It died while it had our request: another target may do better. Not a third
                        // one: the request itself may be what kills them.
                        job.deaths += 1;
                        if job.deaths > 1 {
                            return Err(Failure::Final(bad_gateway(
                                "Two instances of the app ended while they had this request.",
                            )));
                        }
                        return Err(Failure::NothingSent);
                    }
                } else {
                    return Err(Failure::Final(bad_gateway(
                        "The app ended the connection before it answered.",
                    )));
                }
                if !was_reused {
                    return Err(Failure::NothingSent);
                }
            }
        }
    }
}

fn answer(
    upstream: Rc<Upstream>,
    sender: SendRequest<Outgoing>,
    in_flight: InFlight,
    job: &mut Job,
    mut response: hyper::Response<Incoming>,
) -> Answer {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let visitor = job.upgrade.take().filter(|_| switching);
    headers::strip_hop_by_hop(response.headers_mut(), visitor.is_some());
    let Some(visitor) = visitor else {
        if switching {
            // Nobody asked to switch: this app cannot be understood.
            let page = bad_gateway("The app switched protocols unasked.");
            return Answer::plain(page.render(&job.parts.headers));
        }
        return Answer {
            response: response.map(from_app),
            in_flight: Some(in_flight),
            reuse: Some(Reuse { upstream, sender }),
            upgrade: None,
        };
    };
    let app = hyper::upgrade::on(&mut response);
    Answer {
        response: response.map(from_app),
        in_flight: None,
        reuse: None,
        upgrade: Some(Box::new(move |entry, log| {
            upgrade::join(visitor, app, in_flight, entry, log);
        })),
    }
}
