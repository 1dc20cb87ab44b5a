/** What people read in a browser: `/docs` and the pages of errors. */

import t from 'tap'
import { ERROR_CODES } from '../../src/errors.js'
import { contractOf } from '../helpers/contract.js'
import { emptyDatabase } from '../helpers/database.js'
import { startService } from '../helpers/service.js'

/** As Chromium, Firefox and Safari send it, but for the images. */
const OF_A_BROWSER = 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8'

t.test('the pages', async (t) => {
  const service = await startService(t)
  const get = (url: string, accept = OF_A_BROWSER) => service.call('GET', url, { headers: { accept } })

  t.test('/ leads to the contract', async (t) => {
    t.match(await get('/'), { status: 302, headers: { location: '/docs/' } })
  })

  t.test('/docs is ours, is framed by nobody and loads nothing from elsewhere', async (t) => {
    const page = await get('/docs/')
    t.match(page, { status: 200, headers: { 'content-type': /^text\/html/ }, text: '<title>mecha-keys</title>' })
    t.notMatch(page.text, /fastify|https?:\/\//i)
    for (const url of ['/docs', '/docs/', '/docs/static/swagger-ui-bundle.js', '/docs/static/start.js', '/docs/static/favicon.svg', '/docs/static/nothing'])
      t.match((await get(url)).headers, { 'content-security-policy': /default-src 'none'.*frame-ancestors 'none'/, 'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY' }, url)
  })

  t.test('what /docs refers to is served, and so is the contract that it shows', async (t) => {
    const page = await get('/docs/')
    for (const [, target] of page.text.matchAll(/(?:href|src)="([^"]+)"/g)) t.match(await get(`/docs/${target}`), { status: 200, headers: { 'content-type': /^(text\/(css|javascript)|image\/svg\+xml)/ } }, target!)
    const start = (await get('/docs/static/start.js')).text
    const url = new URL(/new URL\('([^']+)'/.exec(start)![1]!, 'http://service.example/docs/').pathname
    t.match(await get(url), { status: 200, headers: { 'content-type': /^application\/json/ }, body: { openapi: '3.1.0' } })
  })

  t.test('nothing is served from outside of the folder of /docs, and asking for it is no error of ours', async (t) => {
    const paths = ['%2e%2e/package.json', '%2e%2e/%2e%2e/%2e%2e/%2e%2e/package.json', '..%2fpackage.json', '%2e%2e%5cpackage.json', 'x/%2e%2e/%2e%2e/package.json', '%00', 'index.css%00', '.env', '%2f%2fetc%2fpasswd']
    for (const path of paths) t.match(await get(`/docs/static/${path}`), { status: 404, body: { code: 'route_not_found' } }, path)
    t.notMatch(service.logs(), /"level":50/)
  })

  t.test('the type of a problem is where its page is: HTML for a browser, Markdown for others', async (t) => {
    const problem = await service.call('GET', '/nowhere')
    for (const accept of ['*/*', 'text/markdown', 'application/json', ''])
      t.match(await get(problem.body.type, accept), { status: 200, headers: { 'content-type': 'text/markdown; charset=utf-8', 'vary': 'Accept' }, text: /^# route_not_found \(404\)/ }, accept)
    for (const code of ERROR_CODES) {
      const page = await get(`/errors/${code}`)
      const headers = { 'content-type': 'text/html; charset=utf-8', 'vary': 'Accept', 'content-security-policy': /frame-ancestors 'none'/, 'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY' }
      t.match(page, { status: 200, headers, text: new RegExp(`<title>${code} .*<h1>${code} \\(\\d{3}\\)</h1>.*<h2>What to do</h2>`, 's') }, code)
      const asMarkdown = await get(`/errors/${code}`, 'text/markdown')
      const targets = [...page.text.matchAll(/(?:href|src)="([^"]*)"/g), ...asMarkdown.text.matchAll(/\]\(([^)]*)\)/g)]
      for (const [, target] of targets) {
        const url = new URL(target!, `http://service.example/errors/${code}`)
        if (url.host === 'service.example') t.equal((await get(url.pathname)).status, 200, `${code} leads to ${target}`)
      }
    }
    for (const odd of ['/errors/README', '/errors/..%2Fsecurity', '/errors/%2e%2e%2fsecurity', '/errors/nonsense', '/errors/not_found.md']) t.match(await get(odd), { status: 404, body: { code: 'route_not_found' } }, odd)
  })
})

t.test('/openapi.json tells of the plane that is served', async (t) => {
  const database = await emptyDatabase()
  const pathsOf = async (PLANES: string) => Object.keys((await (await startService(t, { PLANES }, database)).call('GET', '/openapi.json')).body.paths)
  const [control, runtime] = [await pathsOf('control'), await pathsOf('runtime')]
  t.ok(control.includes('/v1/keys') && runtime.includes('/v1/verify'))
  t.same(control.filter((path) => runtime.includes(path)).sort(), ['/livez', '/readyz'])
  t.same([...new Set([...control, ...runtime])].sort(), Object.keys(contractOf().paths).sort())
})
