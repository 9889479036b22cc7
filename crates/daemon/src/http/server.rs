//! The server itself: version, our own processes, walls.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use hutong_api::{Leak, Problem, SystemProcess, Version, Wall};
use hutong_ipc::docker::About;
use hutong_ipc::warden::Wanted;
use hutong_runtime::client::DriverError;

use super::{ApiError, Result};
use crate::{Control, ids, lock};

/// The server's version, and where visitors arrive.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version)))]
pub async fn version(State(control): State<Arc<Control>>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").into(),
        http: control.http.clone(),
        https: control.https.clone(),
    })
}

/// Our own processes: warden, control, gateway, and a shim for each instance.
#[utoipa::path(get, path = "/v1/system", responses((status = 200, body = Vec<SystemProcess>)))]
pub async fn system(State(control): State<Arc<Control>>) -> Result<Json<Vec<SystemProcess>>> {
    let list = blocking(move || control.warden.system()).await??;
    let list = list
        .into_iter()
        .map(|process| SystemProcess {
            role: process.role,
            pid: process.pid,
            uid: process.uid,
            memory_bytes: process.memory_bytes,
            app: process.app,
            instance: process.instance,
        })
        .collect();
    Ok(Json(list))
}

#[derive(serde::Deserialize)]
pub struct Fix {
    #[serde(default)]
    fix: bool,
}

/// What lies around on the machine and belongs to no app; with `fix=true` it is removed.
#[utoipa::path(post, path = "/v1/leaks", params(("fix" = Option<bool>, Query)), responses((status = 200, body = Vec<Leak>)))]
pub async fn leaks(
    State(control): State<Arc<Control>>,
    Query(fix): Query<Fix>,
) -> Result<Json<Vec<Leak>>> {
    let mut list = find_leaks(&control, Vec::new()).await?;
    if fix.fix {
        // Looked for once more, with a fresh list of apps: what is no leak in both eyes stays.
        let found = list
            .into_iter()
            .map(|leak| (leak.kind, leak.what))
            .collect();
        list = find_leaks(&control, found).await?;
    }
    let list = list.into_iter().map(|leak| Leak {
        kind: leak.kind,
        what: leak.what,
        removed: leak.removed,
        problem: leak.problem,
    });
    Ok(Json(list.collect()))
}

async fn find_leaks(
    control: &Arc<Control>,
    fix: Vec<(String, String)>,
) -> Result<Vec<hutong_ipc::warden::Leak>> {
    let apps = control
        .store
        .apps()?
        .into_iter()
        .map(|app| app.name)
        .collect();
    let builds = control.store.building()?;
    let builds = builds
        .iter()
        .map(|build| ids::build(&build.app, build.id))
        .collect();
    let control = control.clone();
    Ok(blocking(move || control.warden.leaks(apps, builds, fix)).await??)
}

/// The running server becomes the program that now lies where its own was. Apps run on, no request is
/// lost; the answer comes before the change.
#[utoipa::path(post, path = "/v1/upgrade", responses((status = 200), (status = 409, body = Problem)))]
pub async fn upgrade(State(control): State<Arc<Control>>) -> Result<()> {
    blocking(move || control.warden.upgrade())
        .await?
        .map_err(|error| match error {
            DriverError::Refused(reason) => ApiError::conflict(reason),
            other => other.into(),
        })
}

/// Every wall of isolation, and whether it stands on this host.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = Vec<Wall>)))]
pub async fn doctor(State(control): State<Arc<Control>>) -> Result<Json<Vec<Wall>>> {
    let ours = control.clone();
    let mut walls = blocking(move || ours.warden.doctor()).await??;
    if control.settings.docker.is_some() {
        let asked = control.clone();
        let about = blocking(move || asked.docker.about()).await?;
        walls.push(engine(about));
    }
    if let Some(address) = control.settings.registry {
        let why = lock(&control.images.unheard).clone();
        walls.push(registry(address, why));
    }
    let walls = walls
        .into_iter()
        .map(|wall| Wall {
            wall: wall.wall,
            what: wall.what,
            stands: wall.stands,
            found: wall.found,
            remedy: wall.remedy,
        })
        .collect();
    Ok(Json(walls))
}

/// What apps from images run on.
fn engine(about: std::result::Result<About, DriverError>) -> Wanted {
    let (stands, found, remedy) = match about {
        Ok(about) => {
            let remapped = match about.remapped {
                true => ", which makes somebody else of root",
                false => "",
            };
            (
                true,
                format!("Docker {}{remapped}", about.version),
                String::new(),
            )
        }
        Err(error) => (
            false,
            format!("the engine does not answer: {error}"),
            "start Docker, or see its own log: journalctl -u docker".into(),
        ),
    };
    Wanted {
        wall: "docker".into(),
        what: "apps from images have an engine to run on".into(),
        stands,
        found,
        remedy,
    }
}

/// Where images are pushed on this machine.
fn registry(address: std::net::SocketAddr, why: Option<String>) -> Wanted {
    Wanted {
        wall: "registry".into(),
        what: "images can be pushed from this machine".into(),
        stands: why.is_none(),
        remedy: match why {
            Some(_) => format!(
                "see who has the address (ss -ltnp), or set another `registry` than {address} in the server file"
            ),
            None => String::new(),
        },
        found: why.unwrap_or_else(|| format!("it listens on {address}")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::new(500, error.to_string()))
}
