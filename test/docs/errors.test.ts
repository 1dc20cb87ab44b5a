import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { ERROR_CODES, Problem } from '../../src/errors.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

const FOLDER = join(PACKAGE_ROOT, 'docs', 'errors')

t.test('every code has a page, and every page is of a code', async (t) => {
  const pages = readdirSync(FOLDER).filter((file) => file !== 'README.md').map((file) => file.replace(/\.md$/, ''))
  t.same(pages.sort(), [...ERROR_CODES].sort())
})

t.test('a page and the index say the code, the status and the title of the catalogue', async (t) => {
  const index = readFileSync(join(FOLDER, 'README.md'), 'utf8')
  for (const code of ERROR_CODES) {
    const { status, title } = new Problem(code, '')
    const page = readFileSync(join(FOLDER, `${code}.md`), 'utf8')
    t.ok(page.startsWith(`# ${code} (${status})\n\n${title}.\n`), code)
    t.ok(index.includes(`| [\`${code}\`](${code}.md) | ${status} | ${title} |`), `${code} in the index`)
    const example = JSON.parse(/```json\n(.*?)```/s.exec(page)![1]!)
    t.match(example, { type: `/errors/${code}`, title, status, code })
  }
})

t.test('every code is answered by something', async (t) => {
  const sources = readdirSync(join(PACKAGE_ROOT, 'src'), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts') && file !== 'errors.ts')
  const text = sources.map((file) => readFileSync(join(PACKAGE_ROOT, 'src', file), 'utf8')).join('\n')
  const inCatalogue = readFileSync(join(PACKAGE_ROOT, 'src', 'errors.ts'), 'utf8')
  for (const code of ERROR_CODES) t.ok(text.includes(`'${code}'`) || inCatalogue.includes(`new Problem('${code}'`), code)
})
