import js from '@eslint/js'
import stylistic from '@stylistic/eslint-plugin'
import tseslint from 'typescript-eslint'

/**
 * The walls: what each folder of `src/` may import of the others. Imports point one way, and the two planes never import each other. Neither
 * does the service import the gateway SDK, nor the SDK the service: both speak `protocol/`.
 */
const walls = {
  protocol: [],
  'gateway-sdk': ['protocol'],
  credentials: ['errors', 'protocol'],
  db: ['credentials', 'errors', 'package-root'],
  tracing: ['db'],
  http: ['credentials', 'db', 'errors', 'package-root', 'protocol'],
  control: ['config', 'credentials', 'db', 'errors', 'http', 'protocol'],
  runtime: ['clock', 'config', 'credentials', 'db', 'errors', 'http', 'protocol'],
  server: ['clock', 'config', 'control', 'credentials', 'db', 'errors', 'http', 'package-root', 'protocol', 'runtime', 'tracing'],
  cli: ['config', 'control', 'credentials', 'db', 'errors', 'package-root', 'protocol', 'server'],
}

/** An import that leaves its folder, and goes to none of those that are allowed. */
const wallRules = Object.entries(walls).map(([folder, allowed]) => ({
  files: [`src/${folder}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: [
          {
            regex: `^(\\.\\./)+(?=(config|clock|errors|main|package-root|setting-parsers|${Object.keys(walls).join('|')})(/|\\.js$))(?!(${[folder, ...allowed].join('|')})(/|\\.js$))`,
            message: `src/${folder} may import ${allowed.length === 0 ? 'nothing else' : allowed.join(', ')}.`,
          },
        ],
      },
    ],
  },
}))

/**
 * How the code is set, which `eslint . --fix` does. Lines may be long and break where their meaning does, so no rule
 * says where a list is broken.
 */
const style = {
  files: ['**/*.ts', '**/*.js', '**/*.mjs'],
  plugins: { '@stylistic': stylistic },
  rules: {
    ...stylistic.configs.customize({ indent: 2, quotes: 'single', semi: false, braceStyle: '1tbs', arrowParens: true, jsx: false }).rules,
    '@stylistic/list-style': 'off',
    '@stylistic/max-statements-per-line': 'off',
    '@stylistic/quote-props': 'off',
    // A `for` without a last part ends in `; )`.
    '@stylistic/space-in-parens': 'off',
    '@stylistic/quotes': ['error', 'single', { avoidEscape: true, allowTemplateLiterals: 'always' }],
    '@stylistic/operator-linebreak': ['error', 'before', { overrides: { '=': 'after' } }],
    '@stylistic/member-delimiter-style': ['error', { multiline: { delimiter: 'none' }, singleline: { delimiter: 'semi', requireLast: false } }],
    '@stylistic/generator-star-spacing': ['error', { before: false, after: true, method: { before: true, after: false } }],
  },
}

export default tseslint.config(
  { ignores: ['**/dist/', 'node_modules/', '.tap/', '.data/', '.programs/', 'test/clients/'] },
  js.configs.recommended,
  style,
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { project: './tsconfig.json', tsconfigRootDir: import.meta.dirname } },
    rules: {
      // Fastify's plugins and hooks are asynchronous by their type, whether or not they wait for something.
      '@typescript-eslint/require-await': 'off',
      // `!` stands where a schema or a regular expression has just made sure; noUncheckedIndexedAccess asks for it.
      '@typescript-eslint/no-non-null-assertion': 'off',
      // Fastify's reply is a thenable that is not meant to be awaited.
      '@typescript-eslint/no-floating-promises': ['error', { allowForKnownSafeCalls: [{ from: 'package', name: ['type', 'send', 'code', 'header', 'headers'], package: 'fastify' }] }],
      '@typescript-eslint/no-misused-promises': ['error', { checksVoidReturn: false }],
      // A table's type does not matter to what migrates it or counts its queries.
      '@typescript-eslint/no-explicit-any': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
    },
  },
  {
    files: ['src/**/*.ts'],
    ignores: ['src/config.ts', 'src/db/embedded/postgres-supervisor.ts'],
    rules: {
      'no-restricted-syntax': [
        'error',
        { selector: "MemberExpression[object.name='process'][property.name='env']", message: 'config.ts is the only reader of the environment.' },
      ],
    },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts'],
    rules: {
      // Answers are read as JSON, of whatever shape.
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-return': 'off',
      // tap's own way: `t.test` gives a promise that the parent waits for.
      '@typescript-eslint/no-floating-promises': 'off',
    },
  },
  ...wallRules,
  {
    files: ['**/*.js', '**/*.mjs'],
    languageOptions: { globals: { process: 'readonly', console: 'readonly', URL: 'readonly', Buffer: 'readonly', fetch: 'readonly', AbortSignal: 'readonly', setTimeout: 'readonly', clearTimeout: 'readonly', setInterval: 'readonly', clearInterval: 'readonly' } },
  },
)
