//! Where containers call other apps: sockets that listen in a container's own network, made by the warden, and handed to
//! the gateway, which serves them. They are kept for as long as the container lives: gateways come and go.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use hutong_core::name::AppName;
use hutong_core::spec::links::MAX_LINKS;
use hutong_ipc::channel;
use hutong_ipc::docker::{Ask, LinksOf, Told};
use hutong_ipc::shim::Answer;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::engine::Engine;
use crate::serve;

/// Lines of gateways at once: one for each container that calls others.
const MAX_LINES: usize = 4096;

/// The names in a container's label, in the order of their addresses.
pub fn names(label: Option<&String>) -> Vec<String> {
    let names = label.into_iter().flat_map(|text| text.split(','));
    names
        .filter(|name| AppName::new(name).is_ok())
        .take(MAX_LINKS)
        .map(str::to_owned)
        .collect()
}

/// Serves gateways, until the process ends.
pub async fn run(engine: Rc<Engine>, listener: UnixListener) {
    let open = Rc::new(());
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let known = [0, engine.setup.gateway_uid];
        let known = channel::peer(&stream).is_ok_and(|(_, uid)| known.contains(&uid));
        if !known || Rc::strong_count(&open) > MAX_LINES {
            continue;
        }
        let (engine, open) = (engine.clone(), open.clone());
        tokio::task::spawn_local(async move {
            let _ = answer(&engine, stream).await;
            drop(open);
        });
    }
}

/// One gateway's line about one container; it ends with the container.
async fn answer(engine: &Rc<Engine>, mut stream: UnixStream) -> std::io::Result<()> {
    let Some(LinksOf { instance }) = serve::receive(&mut stream, &mut Vec::new()).await? else {
        return Ok(());
    };
    let names = engine.links_of(&instance);
    let sockets = engine.listen(&instance).await;
    let (frame, sockets) = match sockets {
        Ok(sockets) => (channel::encode(&Answer::Links(names))?, sockets),
        Err(reason) => (channel::encode(&Answer::Refused(reason))?, Rc::default()),
    };
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let send = || channel::send_some(stream.as_fd(), &frame, &fds);
    if stream.async_io(Interest::WRITABLE, send).await? != frame.len() {
        return Ok(());
    }
    drop(fds);
    let mut nothing = [0; 1];
    while engine.runs(&instance) {
        tokio::select! {
            () = engine.changed.notified() => {}
            _ = stream.read(&mut nothing) => return Ok(()),
        }
    }
    Ok(())
}

impl Engine {
    /// The listening sockets of a container's links: those that there are, or fresh ones.
    pub async fn listen(&self, name: &str) -> Result<Rc<Vec<std::os::fd::OwnedFd>>, String> {
        let links = self.links_of(name).len();
        let (container, pid) = self.process_of(name).ok_or("it does not run")?;
        if links == 0 {
            return Ok(Rc::default());
        }
        if let Some(kept) = self.listening.borrow().get(name) {
            return Ok(kept.clone());
        }
        let ask = Ask::Listen {
            container,
            pid,
            links,
        };
        match self.ask(ask).await? {
            (Told::Listening, sockets) if sockets.len() == links => {
                let mut all = self.listening.borrow_mut();
                // Somebody else may have asked meanwhile; then the warden has refused one of us.
                let kept = all.entry(name.to_owned()).or_insert(Rc::new(sockets));
                Ok(kept.clone())
            }
            (Told::Refused(reason), _) => Err(reason),
            _ => Err("the warden's answer is not understood".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_label_is_read_as_names_and_nothing_else() {
        let label = "orders,pay,../x,,A,pay-2".to_owned();
        assert_eq!(super::names(Some(&label)), ["orders", "pay", "pay-2"]);
        assert!(super::names(None).is_empty());
        let many = vec!["a"; 100].join(",");
        assert_eq!(super::names(Some(&many)).len(), 32);
    }
}
