/** What people read in a browser: the contract to try, and a page for each error. */

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { FastifyInstance } from 'fastify'
import { ERROR_CODES, Problem } from '../errors.js'
import { PACKAGE_ROOT } from '../package-root.js'
import { preferredType } from '../http/headers.js'

const FAVICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1f2933"/><path d="M4 12V4l4 5 4-5v8" fill="none" stroke="#fff" stroke-width="2"/></svg>'
const STYLE = [
  'body{max-width:44rem;margin:2rem auto;padding:0 1rem;font:1rem/1.6 system-ui,sans-serif;color:#1f2933;background:#fff}',
  'code,pre{font-family:ui-monospace,monospace;font-size:.9em;background:#f1f4f7;border-radius:4px}code{padding:.1em .3em}pre{padding:1rem;overflow:auto}pre code{padding:0}a{color:#0b5cad}',
  '@media(prefers-color-scheme:dark){body{color:#e4e7eb;background:#15191e}code,pre{background:#232a32}a{color:#7cb7f5}}',
].join('')

/** What a process serves. */
type Planes = 'control' | 'runtime' | 'both'

/** Nothing is loaded from elsewhere, and nobody frames a page in which an operator pastes a token. */
const POLICY = { 'default-src': "'none'", 'base-uri': "'none'", 'form-action': "'none'", 'frame-ancestors': "'none'" }
const DOCS_POLICY = policy({ ...POLICY, 'script-src': "'self'", 'style-src': "'self'", 'img-src': "'self' data:", 'connect-src': "'self'" })
const ERROR_PAGE_POLICY = policy({ ...POLICY, 'style-src': `'sha256-${createHash('sha256').update(STYLE).digest('base64')}'` })
const PAGE_HEADERS = { 'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY', 'referrer-policy': 'no-referrer' }

function policy(directives: Record<string, string>): string {
  return Object.entries(directives).map(([name, value]) => `${name} ${value}`).join('; ')
}

/** What swagger-ui is made of, by the names under which it is served. Its own page and settings are not taken. */
const OF_SWAGGER_UI = { 'swagger-ui.css': 'text/css; charset=utf-8', 'swagger-ui-bundle.js': 'text/javascript; charset=utf-8' } as const
const OURS: Readonly<Record<string, readonly [type: string, text: string]>> = {
  'favicon.svg': ['image/svg+xml', FAVICON],
  // Without the bar at the top, which is not ours.
  'start.js': ['text/javascript; charset=utf-8', "window.ui = SwaggerUIBundle({ dom_id: '#swagger-ui', url: new URL('../openapi.json', location.href).href, deepLinking: true, layout: 'BaseLayout', validatorUrl: null, presets: [SwaggerUIBundle.presets.apis] })\n"],
}
const DOCS = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mecha-keys</title>
<link rel="icon" type="image/svg+xml" href="static/favicon.svg">
<link rel="stylesheet" href="static/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="static/swagger-ui-bundle.js"></script>
<script src="static/start.js"></script>
</body>
</html>
`

/** Serves the contract: at `/openapi.json` for programs, and at `/docs` to read and to try. Nothing of it is loaded before somebody asks for it. */
export function registerContract(app: FastifyInstance, planes: Planes): void {
  const hidden = { schema: { hide: true } }
  let contract: string | undefined
  app.get('/openapi.json', hidden, async (_request, reply) => reply.type('application/json; charset=utf-8').send((contract ??= await contractOf(planes))))
  app.get('/', hidden, async (_request, reply) => reply.redirect('/docs/'))
  void app.register(async (docs) => {
    docs.addHook('onRequest', (_request, reply, done) => {
      reply.headers({ ...PAGE_HEADERS, 'content-security-policy': DOCS_POLICY })
      done()
    })
    docs.get('/docs', hidden, async (_request, reply) => reply.redirect('/docs/'))
    docs.get('/docs/', hidden, async (_request, reply) => reply.type('text/html; charset=utf-8').send(DOCS))
    docs.get('/docs/static/:file', hidden, async (request, reply) => {
      const { file } = request.params as { file: string }
      const own = Object.hasOwn(OURS, file) ? OURS[file] : undefined
      if (own) return reply.type(own[0]).send(own[1])
      if (!Object.hasOwn(OF_SWAGGER_UI, file)) throw nothingHere()
      const name = file as keyof typeof OF_SWAGGER_UI
      return reply.type(OF_SWAGGER_UI[name]).send(createReadStream(fileURLToPath(import.meta.resolve(`swagger-ui-dist/${name}`))))
    })
  })
}

/** The contract of what this process serves. It was made when a route was last changed: `npm run docs`. */
async function contractOf(planes: Planes): Promise<string> {
  const text = await readFile(join(PACKAGE_ROOT, 'openapi', 'openapi.json'), 'utf8')
  if (planes === 'both') return text
  const contract = JSON.parse(text) as { paths: Record<string, Record<string, { readonly tags: readonly string[] }>> }
  const isServed = ({ tags }: { readonly tags: readonly string[] }) => tags.includes(planes) || tags.includes('ops')
  const paths = Object.entries(contract.paths).filter(([, operations]) => Object.values(operations).every(isServed))
  return JSON.stringify({ ...contract, paths: Object.fromEntries(paths) })
}

/** Serves the pages that problems point to: as Markdown, or as HTML to who prefers that. */
export function registerErrorPages(app: FastifyInstance): void {
  app.get('/errors/:code', { schema: { hide: true } }, async (request, reply) => {
    const { code } = request.params as { code: string }
    if (!(ERROR_CODES as string[]).includes(code)) throw nothingHere()
    const page = await readFile(join(PACKAGE_ROOT, 'docs', 'errors', `${code}.md`), 'utf8')
    reply.headers({ ...PAGE_HEADERS, 'content-security-policy': ERROR_PAGE_POLICY, 'vary': 'Accept' })
    if (preferredType(request, ['text/markdown', 'text/html']) !== 'text/html') return reply.type('text/markdown; charset=utf-8').send(withServedLinks(page))
    return reply.type('text/html; charset=utf-8').send(await htmlOf(code, page))
  })
}

function nothingHere(): Problem {
  return new Problem('route_not_found', 'Nothing is served at this path.')
}

/** What lies beside a page is served beside it. Other documents of the repository are not served: their names stay, as text. */
function withServedLinks(page: string): string {
  return page.replace(/\[([^\]]+)\]\(([^)\s]*\.md[^)\s]*)\)/g, (_link, text: string, target: string) => {
    const beside = /^([a-z_]+)\.md$/.exec(target)?.[1]
    return beside ? `[${text}](${beside})` : text
  })
}

async function htmlOf(code: string, page: string): Promise<string> {
  const { marked } = await import('marked')
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${code} · mecha-keys</title>
<style>${STYLE}</style>
</head>
<body>
${marked.parse(withServedLinks(page), { async: false })}<p><a href="/docs/">mecha-keys</a></p>
</body>
</html>
`
}
