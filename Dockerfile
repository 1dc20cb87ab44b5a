# The newest Node.js with long-term support; the service itself runs on 20.19 and later.
ARG NODE_VERSION=26
FROM node:${NODE_VERSION}-trixie-slim AS base
WORKDIR /app
COPY package.json package-lock.json ./
COPY sdk/package.json sdk/
COPY docker docker

FROM base AS build
# No package's install script is needed, neither to compile nor to run.
RUN npm ci --ignore-scripts
COPY tsconfig.json ./
COPY sdk/tsconfig.json sdk/
COPY src src
COPY test test
COPY bench bench
RUN npm run build && node docker/prune.mjs dist

FROM base AS production
LABEL org.opencontainers.image.title="mecha-keys" \
  org.opencontainers.image.description="Issues, lists, rotates, revokes and verifies Mecha keys: the runtime credentials of named AI workers" \
  org.opencontainers.image.version="0.1.0"
# @node-rs/argon2 brings its prebuilt binary as an optional dependency: do not omit those.
RUN npm ci --omit=dev --ignore-scripts && npm cache clean --force && node docker/prune.mjs node_modules
COPY --from=build /app/dist/src dist/src
COPY migrations migrations
COPY docs/errors docs/errors
COPY openapi openapi
# What Node.js compiles of the program, which halves a start. It is kept for one user id, and read alone from here on.
RUN install -d -o node -g node node_modules/.cache/mecha-keys
USER node
RUN node dist/src/main.js --version && node --input-type=module --eval "import { enableCompileCache, flushCompileCache } from 'node:module'; enableCompileCache('/app/node_modules/.cache/mecha-keys'); await import('/app/dist/src/cli/serve.js'); flushCompileCache()"
USER root
RUN chown -R root:root node_modules/.cache
# A volume mounted here takes over this ownership; docker-compose.yml keeps generated secrets so.
RUN install -d -o node -g node -m 0700 /secrets/service
ENV NODE_ENV=production HOST=0.0.0.0
USER node
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.PORT ?? 8080) + '/livez', { signal: AbortSignal.timeout(2000) }).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["node", "dist/src/main.js"]
CMD ["serve"]
