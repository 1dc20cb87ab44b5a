/** What people read in a browser: the contract to try, and a page for each error. */

import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import accepts from '@fastify/accepts'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyError, FastifyInstance } from 'fastify'
import { Marked } from 'marked'
import { ERROR_CODES, Problem } from '../errors.js'
import { PACKAGE_ROOT } from '../package-root.js'
import { answerProblem, loggedProblem } from './problems.js'

const FAVICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1f2933"/><path d="M4 12V4l4 5 4-5v8" fill="none" stroke="#fff" stroke-width="2"/></svg>'
const STYLE = [
  'body{max-width:44rem;margin:2rem auto;padding:0 1rem;font:1rem/1.6 system-ui,sans-serif;color:#1f2933;background:#fff}',
  'code,pre{font-family:ui-monospace,monospace;font-size:.9em;background:#f1f4f7;border-radius:4px}code{padding:.1em .3em}pre{padding:1rem;overflow:auto}pre code{padding:0}a{color:#0b5cad}',
  '@media(prefers-color-scheme:dark){body{color:#e4e7eb;background:#15191e}code,pre{background:#232a32}a{color:#7cb7f5}}',
].join('')

/** Nothing is loaded from elsewhere, and nobody frames a page in which an operator pastes a token. */
const POLICY = { 'default-src': "'none'", 'base-uri': "'none'", 'form-action': "'none'", 'frame-ancestors': "'none'" }
const DOCS_POLICY = policy({ ...POLICY, 'script-src': "'self'", 'style-src': "'self'", 'img-src': "'self' data:", 'connect-src': "'self'" })
const ERROR_PAGE_POLICY = policy({ ...POLICY, 'style-src': `'sha256-${createHash('sha256').update(STYLE).digest('base64')}'` })
const PAGE_HEADERS = { 'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY', 'referrer-policy': 'no-referrer' }

function policy(directives: Record<string, string>): string {
  return Object.entries(directives).map(([name, value]) => `${name} ${value}`).join('; ')
}

/** Serves the contract at `/docs`, to read and to try. Must be registered after what makes the contract. */
export async function registerDocs(app: FastifyInstance): Promise<void> {
  app.get('/', { schema: { hide: true } }, async (_request, reply) => reply.redirect('/docs/'))
  await app.register(async (docs) => {
    docs.addHook('onRequest', (_request, reply, done) => {
      reply.headers(PAGE_HEADERS)
      done()
    })
    // A path that leads out of the folder, or is none, is an error of the file server's own.
    docs.setErrorHandler((error: FastifyError, request, reply) => {
      const isOfClient = error.statusCode !== undefined && error.statusCode < 500
      return answerProblem(reply, isOfClient ? nothingHere() : loggedProblem(error, request))
    })
    await docs.register(swaggerUi, {
      routePrefix: '/docs',
      staticCSP: DOCS_POLICY,
      // Without the bar at the top, which is not ours.
      uiConfig: { deepLinking: true, layout: 'BaseLayout' },
      theme: { title: 'mecha-keys', favicon: [{ filename: 'favicon.svg', rel: 'icon', type: 'image/svg+xml', sizes: 'any', content: FAVICON }] },
    })
  })
}

/** Serves the pages that problems point to: as Markdown, or as HTML to who prefers that. */
export async function registerErrorPages(app: FastifyInstance): Promise<void> {
  await app.register(async (scope) => {
    await scope.register(accepts)
    scope.get('/errors/:code', { schema: { hide: true } }, async (request, reply) => {
      const { code } = request.params as { code: string }
      if (!(ERROR_CODES as string[]).includes(code)) throw nothingHere()
      const page = await readFile(join(PACKAGE_ROOT, 'docs', 'errors', `${code}.md`), 'utf8')
      reply.headers({ ...PAGE_HEADERS, 'content-security-policy': ERROR_PAGE_POLICY, 'vary': 'Accept' })
      if (request.accepts().type(['text/markdown', 'text/html']) !== 'text/html') return reply.type('text/markdown; charset=utf-8').send(withServedLinks(page))
      return reply.type('text/html; charset=utf-8').send(htmlOf(code, page))
    })
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

const marked = new Marked()

function htmlOf(code: string, page: string): string {
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
