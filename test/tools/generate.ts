/** `npm run docs`: writes what is generated of the documentation. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { openApiYaml, withSettings } from './documents.js'

const contract = join(PACKAGE_ROOT, 'openapi', 'openapi.yaml')
const readme = join(PACKAGE_ROOT, 'README.md')

mkdirSync(join(PACKAGE_ROOT, 'openapi'), { recursive: true })
writeFileSync(contract, await openApiYaml())
writeFileSync(readme, withSettings(readFileSync(readme, 'utf8')))
