# One image for every service of docker-compose.yml; the command says which.
# Pinned by tag. To pin what the tag leads to now, add its digest: python:…@sha256:….
FROM python:3.11.14-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /app
COPY requirements.lock docker/runtime_requirements.py ./
RUN python runtime_requirements.py < requirements.lock > /tmp/requirements.lock \
    && pip install --require-hashes -r /tmp/requirements.lock \
    && rm requirements.lock runtime_requirements.py

COPY pyproject.toml ./
COPY ingestion ingestion
COPY simulator simulator
COPY warehouse warehouse
COPY orchestration orchestration
COPY dashboards dashboards
COPY medallion medallion
COPY dbt_project dbt_project
# What a container can't write: dbt's packages, and the bytecode.
RUN python -m medallion deps \
    && rm -rf dbt_project/logs dbt_project/target \
    && python -m compileall -q .


FROM python:3.11.14-slim-bookworm

ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp MEDALLION_HOME=/var/lib/medallion

# A new volume takes over whose these folders are. dbt's target is a tmpfs.
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin medallion \
    && install --directory --owner medallion --mode 0700 \
        /var/lib/medallion /var/lib/medallion/dagster /var/lib/medallion/spool \
        /var/lib/medallion/archive \
    && install --directory --owner medallion /app/dbt_project/target

COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app

WORKDIR /app
USER 10001
ENTRYPOINT ["python", "-m", "medallion"]
CMD ["--help"]
